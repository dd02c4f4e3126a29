/** The decode worker as a gRPC service. */
import type { KvPool } from '../lib/kv/pool.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { DecodeEvent } from '../lib/rpc/gen/llavacode/v1/DecodeEvent.ts';
import type { DecodeRequest__Output } from '../lib/rpc/gen/llavacode/v1/DecodeRequest.ts';
import type { KvHandle__Output } from '../lib/rpc/gen/llavacode/v1/KvHandle.ts';
import type { WorkerDescription } from '../lib/rpc/gen/llavacode/v1/WorkerDescription.ts';
import { readSampling, tokenMessage } from '../lib/rpc/messages.ts';
import { mount, streaming, unary } from '../lib/rpc/server.ts';
import type { KvSource } from './kv-source.ts';
import { DecodeLoop, type DecodeStep, finishOf, type StepEngine } from './loop.ts';

export interface DecodeOptions {
  readonly model: string;
  readonly fingerprint: string;
  /** Where the KV comes from. */
  readonly source: (loop: DecodeLoop) => KvSource;
  /** Slots of the same pool that hold no sequence: prompts that are computed or staged here. */
  readonly heldElsewhere?: () => number;
  /** Refuses new sequences once aborted. */
  readonly draining: AbortSignal;
}

export function createDecodeService(engine: StepEngine & { readonly pool: KvPool }, options: DecodeOptions) {
  const { pool } = engine;
  const held = () => kvSource().held + (options.heldElsewhere?.() ?? 0);
  const loop = new DecodeLoop(engine, () => pool.assertConserved(held()));
  let source: KvSource | undefined;
  // Made on first use: in a colocated worker it needs what is made after this service.
  const kvSource = () => {
    source ??= options.source(loop);
    return source;
  };

  async function* decode(request: DecodeRequest__Output, signal: AbortSignal): AsyncGenerator<DecodeEvent> {
    const kv = assertServable(request, options, pool.capacity);
    const { slot, ...received } = await kvSource().acquire(kv, signal);
    try {
      yield {
        joined: {
          queueUs: Math.round(received.queueSeconds * 1e6),
          handoffUs: Math.round(received.seconds * 1e6),
          handoffExposedUs: Math.round(received.exposedSeconds * 1e6),
          handoffBytes: received.bytes,
        },
      };
      const firstToken = received.firstTokenIds[request.choice];
      if (firstToken === undefined) {
        throw new ServingError(
          'invalid_request',
          `choice ${request.choice} of ${received.firstTokenIds.length}: there is no such choice`,
        );
      }
      const sampling = readSampling(request.sampling as NonNullable<typeof request.sampling>);
      const { maxTokens } = request;
      const finished = finishOf(firstToken, 1, maxTokens, sampling);
      if (finished) {
        yield { step: { tokens: [], finishReason: finished } };
        return;
      }
      signal.throwIfAborted(); // the listener below hears of later aborts only
      const sequence = loop.join({
        slot,
        sampling,
        positions: kv.positions,
        firstToken,
        maxTokens,
      });
      const stop = () => sequence.steps.destroy(signal.reason);
      signal.addEventListener('abort', stop, { once: true });
      try {
        for await (const step of sequence.steps as AsyncIterable<DecodeStep>) {
          yield { step: { tokens: step.tokens.map(tokenMessage), finishReason: step.finishReason ?? '' } };
        }
      } finally {
        signal.removeEventListener('abort', stop);
        await loop.leave(sequence);
      }
    } finally {
      slot.release();
    }
  }

  const describe = async (): Promise<WorkerDescription> => {
    options.draining.throwIfAborted();
    return {
      role: 'decode',
      model: options.model,
      fingerprint: options.fingerprint,
      layout: { ...pool.layout, dtype: pool.floats },
      capacity: pool.capacity,
      slots: pool.slots,
      freeSlots: pool.free,
      queued: kvSource().waiting,
      prefillTokensPerSecond: 0,
      overdueMs: engine.overdueMs,
    };
  };

  return {
    mounts: [mount.decode({ Decode: streaming(decode), Describe: unary(describe) })],
    /** Sequences in the batch. */
    running: () => loop.size,
    /** Slots in the hands of sequences. */
    held: () => kvSource().held,
  };
}

/** @throws ServingError for a request that this worker could never serve, before anything is reserved for it. */
function assertServable(request: DecodeRequest__Output, options: DecodeOptions, capacity: number): KvHandle__Output {
  options.draining.throwIfAborted();
  const { kv, maxTokens } = request;
  if (kv === null) throw new ServingError('invalid_request', 'kv is missing: the handle that Prefill gave');
  if (request.sampling === null) throw new ServingError('invalid_request', 'sampling is missing');
  if (maxTokens < 1) throw new ServingError('invalid_request', `max_tokens is ${maxTokens}, at least 1 is needed`);
  if (kv.fingerprint !== options.fingerprint) {
    throw new ServingError(
      'fingerprint_mismatch',
      `the KV cache is of model ${kv.fingerprint}, this worker serves ${options.fingerprint}`,
    );
  }
  if (kv.positions + maxTokens > capacity) {
    throw new ServingError(
      'context_length_exceeded',
      `${kv.positions} prompt tokens + max_tokens ${maxTokens} exceed the ${capacity} tokens of a slot`,
    );
  }
  return kv;
}
