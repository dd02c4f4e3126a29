/** The decode worker as a gRPC service. */
import type { KvPool } from '../lib/kv/pool.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { Logger } from '../lib/process/log.ts';
import type { TraceHeaders } from '../lib/process/span.ts';
import { tracedStream } from '../lib/process/tracing.ts';
import type { Sampling } from '../lib/request/next-token.ts';
import type { DecodeEvent } from '../lib/rpc/gen/llavacode/v1/DecodeEvent.ts';
import type { DecodeRequest__Output } from '../lib/rpc/gen/llavacode/v1/DecodeRequest.ts';
import type { Drafts__Output } from '../lib/rpc/gen/llavacode/v1/Drafts.ts';
import type { KvHandle__Output } from '../lib/rpc/gen/llavacode/v1/KvHandle.ts';
import type { WorkerDescription } from '../lib/rpc/gen/llavacode/v1/WorkerDescription.ts';
import { readSampling, tokenMessage } from '../lib/rpc/messages.ts';
import { mount, streaming, unary } from '../lib/rpc/server.ts';
import { DecodeTrace } from './decode-trace.ts';
import type { AcquiredKv, KvSource } from './kv-source.ts';
import { DecodeLoop, type DecodeStep, finishOf, type NewSequence, type StepEngine } from './loop.ts';
import { DRAFT_SOURCES, type DraftSource, type Drafts, NO_DRAFTS } from './speculation/draft-index.ts';

export interface DecodeOptions {
  readonly model: string;
  readonly fingerprint: string;
  /** Kind of the device that the engine computes on. */
  readonly device: string;
  /** Brings the KV of a sequence into a slot. */
  readonly source: KvSource;
  /** Slots of the same pool that hold no sequence: those of prompts that compute or are staged in this process. */
  readonly heldElsewhere?: () => number;
  /** Refuses new sequences once aborted. */
  readonly draining: AbortSignal;
  readonly log: Logger;
}

export function createDecodeService(engine: StepEngine & { readonly pool: KvPool }, options: DecodeOptions) {
  const { pool } = engine;
  const { source, draining, log } = options;
  const loop = new DecodeLoop(engine, () => pool.assertConserved(source.held + (options.heldElsewhere?.() ?? 0)));

  const decode = (request: DecodeRequest__Output, signal: AbortSignal, caller: TraceHeaders) => {
    const trace = DecodeTrace.begin(caller, request.choice);
    return tracedStream(trace, continued(request, signal, trace));
  };

  async function* continued(
    request: DecodeRequest__Output,
    signal: AbortSignal,
    trace: DecodeTrace | undefined,
  ): AsyncGenerator<DecodeEvent> {
    draining.throwIfAborted();
    const { kv, sampling } = assertServable(request, options.fingerprint, pool.capacity);
    const { slot, ...acquired } = await source.acquire(kv, signal, () => loop.betweenSteps(), trace?.headers);
    trace?.joined(acquired);
    let tokens = 0;
    try {
      yield joinedEvent(acquired);
      const { maxTokens } = request;
      const firstToken = firstTokenOf(acquired, request.choice);
      const finishReason = finishOf(firstToken, 1, maxTokens, sampling);
      if (finishReason) {
        yield { step: { tokens: [], finishReason } };
        return;
      }
      const drafts = readDrafts(request.drafts);
      const sequence = { slot, sampling, positions: kv.positions, firstToken, maxTokens, drafts };
      for await (const step of decodeInLoop(loop, sequence, signal)) {
        tokens += step.tokens.length;
        trace?.step(tokens);
        yield stepEvent(step);
      }
    } finally {
      slot.release();
      log.debug(
        {
          request_id: request.requestId,
          trace_id: trace?.traceId,
          choice: request.choice,
          prompt_tokens: kv.positions,
          decoded_tokens: tokens,
          queue_ms: Math.round(acquired.queueSeconds * 1000),
          handoff_ms: Math.round(acquired.seconds * 1000),
          handoff_bytes: acquired.bytes,
        },
        'sequence left',
      );
    }
  }

  const describe = async (): Promise<WorkerDescription> => {
    draining.throwIfAborted();
    return {
      role: 'decode',
      model: options.model,
      fingerprint: options.fingerprint,
      layout: { ...pool.layout, dtype: pool.type },
      capacity: pool.capacity,
      slots: pool.slots,
      freeSlots: pool.free,
      queued: source.waiting,
      prefillTokensPerSecond: 0,
      overdueMs: engine.overdueMs,
      device: options.device,
      stepMs: [...loop.stepMs],
    };
  };

  return {
    mounts: [mount.decode({ Decode: streaming(decode), Describe: unary(describe) })],
    /** Sequences in the batch. */
    running: () => loop.size,
  };
}

/** The steps of one sequence, until it is finished or the signal aborts. It is out of the batch when this ends. */
async function* decodeInLoop(
  loop: DecodeLoop,
  newSequence: NewSequence,
  signal: AbortSignal,
): AsyncGenerator<DecodeStep> {
  signal.throwIfAborted(); // the listener below hears only of later aborts
  const sequence = loop.join(newSequence);
  const stop = () => sequence.steps.destroy(signal.reason);
  signal.addEventListener('abort', stop, { once: true });
  try {
    yield* sequence.steps as AsyncIterable<DecodeStep>;
  } finally {
    signal.removeEventListener('abort', stop);
    await loop.leave(sequence);
  }
}

const joinedEvent = (acquired: Omit<AcquiredKv, 'slot'>): DecodeEvent => ({
  joined: {
    queueUs: Math.round(acquired.queueSeconds * 1e6),
    handoffUs: Math.round(acquired.seconds * 1e6),
    handoffExposedUs: Math.round(acquired.exposedSeconds * 1e6),
    handoffBytes: acquired.bytes,
  },
});

const stepEvent = ({ tokens, finishReason, predicted }: DecodeStep): DecodeEvent => ({
  step: {
    tokens: tokens.map(tokenMessage),
    finishReason: finishReason ?? '',
    acceptedPredicted: predicted?.accepted ?? 0,
    rejectedPredicted: predicted?.rejected ?? 0,
  },
});

/** Texts of a source that is not known here are left out: they change no token. */
function readDrafts(message: Drafts__Output | null): Drafts {
  if (message === null) return NO_DRAFTS;
  const isKnown = (source: string): source is DraftSource => DRAFT_SOURCES.some((name) => name === source);
  const texts = message.texts.flatMap(({ source, tokenIds }) => (isKnown(source) ? [{ source, ids: tokenIds }] : []));
  return { texts, before: message.before };
}

function firstTokenOf({ firstTokenIds }: Pick<AcquiredKv, 'firstTokenIds'>, choice: number): number {
  const firstToken = firstTokenIds[choice];
  if (firstToken !== undefined) return firstToken;
  throw new ServingError(
    'invalid_request',
    `choice ${choice} of ${firstTokenIds.length} does not exist: choices are counted from 0`,
  );
}

/** @throws ServingError for a request that this worker could never serve, before anything is reserved for it. */
function assertServable(
  request: DecodeRequest__Output,
  fingerprint: string,
  capacity: number,
): { kv: KvHandle__Output; sampling: Sampling } {
  const { kv, sampling, maxTokens } = request;
  if (kv === null) throw new ServingError('invalid_request', 'kv is missing: send the handle that Prefill gave');
  if (sampling === null) throw new ServingError('invalid_request', 'sampling is missing');
  if (maxTokens < 1) throw new ServingError('invalid_request', `max_tokens is ${maxTokens}, at least 1 is needed`);
  if (kv.fingerprint !== fingerprint) {
    throw new ServingError(
      'fingerprint_mismatch',
      `the KV cache is of model ${kv.fingerprint}, this worker serves ${fingerprint}`,
    );
  }
  if (kv.positions + maxTokens > capacity) {
    throw new ServingError(
      'context_length_exceeded',
      `${kv.positions} prompt tokens + max_tokens ${maxTokens} exceed the ${capacity} tokens of a slot`,
    );
  }
  return { kv, sampling: readSampling(sampling) };
}
