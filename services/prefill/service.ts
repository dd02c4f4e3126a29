/** The prefill worker as gRPC services: Prefill for the gateway, Kv for decoders (kv-service.ts). */
import type { KvDisk } from '../lib/kv/disk/kv-disk.ts';
import { WriteBehind } from '../lib/kv/disk/write-behind.ts';
import type { PrefixCache } from '../lib/kv/prefix.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { Logger } from '../lib/process/log.ts';
import type { TraceHeaders } from '../lib/process/span.ts';
import type { SystemSecret } from '../lib/process/system-secret.ts';
import { tracedStream } from '../lib/process/tracing.ts';
import type { SoftTokens, TokenPrompt } from '../lib/request/token-prompt.ts';
import type { PrefillEvent } from '../lib/rpc/gen/llavacode/v1/PrefillEvent.ts';
import type { PrefillRequest__Output } from '../lib/rpc/gen/llavacode/v1/PrefillRequest.ts';
import type { WorkerDescription } from '../lib/rpc/gen/llavacode/v1/WorkerDescription.ts';
import { sealHandle } from '../lib/rpc/kv-handle.ts';
import { readSampling, readSoftTokens, tokenMessage } from '../lib/rpc/messages.ts';
import { mount, streaming, unary } from '../lib/rpc/server.ts';
import { mountKv } from './kv-service.ts';
import type { LeaseTable } from './leases.ts';
import { PrefillTrace } from './prefill-trace.ts';
import type { PrefillJob, PrefillResult, PromptEngine } from './prompt-computation.ts';
import { PromptQueue } from './prompt-queue.ts';
import type { PrefillConfig } from './settings.ts';
import { measureRate } from './warm-up.ts';
import { PrefillWorker, type QueuedJob } from './worker.ts';

export interface PrefillParts {
  readonly engine: PromptEngine;
  readonly prefixes: PrefixCache;
  readonly leases: LeaseTable;
  /** Keeps the KV of prompts on disk; undefined where none is kept there. */
  readonly disk?: KvDisk | undefined;
  readonly log: Logger;
}

export interface PrefillOptions extends Pick<PrefillConfig, 'queueTokens' | 'queueOrder'> {
  readonly model: string;
  readonly fingerprint: string;
  /** Kind of the device that the engine computes on. */
  readonly device: string;
  /** Tokens of the next prompt chunk. */
  readonly chunkTokens: () => number;
  /** Slots of the same pool that are held but not leased: those of sequences that decode in this process. */
  readonly heldElsewhere?: () => number;
  /** Whether something other than prompts wants the engine. */
  readonly engineContended?: () => boolean;
  /** Refuses new prompts once aborted. */
  readonly draining: AbortSignal;
  /** host:port under which decoders reach this worker; known once the server listens. */
  readonly address: () => string;
  /** Seals KV handles; undefined in a system without a secret. */
  readonly secret?: SystemSecret | undefined;
}

export function createPrefillService({ engine, prefixes, leases, disk, log }: PrefillParts, options: PrefillOptions) {
  const { pool } = engine;
  const { fingerprint, draining } = options;
  const queue = new PromptQueue<QueuedJob>(options.queueTokens, options.queueOrder);
  const workerOptions = {
    chunkTokens: options.chunkTokens,
    onIdle: () => pool.assertConserved(leases.size + (options.heldElsewhere?.() ?? 0)),
    // A process that drains does not finish chunks that no caller waits for.
    engineContended: () => draining.aborted || options.engineContended?.() === true,
    disk,
  };
  const worker = new PrefillWorker(engine, queue, leases, prefixes, workerOptions, log);

  const writeBehind = disk && new WriteBehind(pool, prefixes, disk, log);
  writeBehind?.start();

  const prefill = (request: PrefillRequest__Output, signal: AbortSignal, caller: TraceHeaders) => {
    const trace = PrefillTrace.begin(caller, request.tokenIds.length);
    return tracedStream(trace, computed(request, signal, trace));
  };

  async function* computed(
    request: PrefillRequest__Output,
    signal: AbortSignal,
    trace: PrefillTrace | undefined,
  ): AsyncGenerator<PrefillEvent> {
    draining.throwIfAborted();
    const ticket = worker.submit(jobOf(request, readPrompt(engine, fingerprint, request), signal, trace));
    const { lease, queueSeconds } = await ticket.accepted;
    trace?.accepted();
    const handle = {
      address: options.address(),
      leaseId: lease.id,
      fingerprint,
      positions: lease.positions,
      leaseMs: leases.ttlMs,
    };
    const kv = sealHandle(handle, options.secret);
    yield { accepted: { kv, queueUs: Math.round(queueSeconds * 1e6) } };
    const result = await ticket.done;
    trace?.computed(result);
    yield { first: firstMessage(result) };
    await lease.released;
    yield { released: {} };
  }

  const describe = async (): Promise<WorkerDescription> => {
    draining.throwIfAborted(); // decoders are still served, but the gateway must send no more prompts
    return {
      role: 'prefill',
      model: options.model,
      fingerprint,
      layout: { ...pool.layout, dtype: pool.type },
      capacity: pool.capacity,
      slots: pool.slots,
      freeSlots: pool.free,
      queued: queue.tokens + worker.computing,
      prefillTokensPerSecond: queue.rate,
      overdueMs: engine.overdueMs,
      device: options.device,
      kvFolder: disk?.folderId ?? '',
    };
  };

  return {
    mounts: [
      mount.prefill({ Prefill: streaming(prefill), Describe: unary(describe) }),
      mountKv(pool, leases, fingerprint),
    ],
    /** Call this before serving: with a known rate the queue is bounded from the first prompt on. */
    warmUp: async () => {
      const { tokens, seconds } = await measureRate(engine);
      queue.measured(tokens, seconds);
    },
    /** Saves what is not on disk yet of kept prompts when nothing is served any more, until the signal aborts. */
    saveKv: (until: AbortSignal) => writeBehind?.stop(until),
    /** Brings gauges up to date before they are read. */
    observe: () => leases.observe(),
  };
}

const jobOf = (
  request: PrefillRequest__Output,
  prompt: TokenPrompt,
  signal: AbortSignal,
  trace: PrefillTrace | undefined,
): PrefillJob => ({
  requestId: request.requestId,
  traceId: trace?.traceId,
  prompt,
  choices: request.choices.map(readSampling),
  readers: request.readers,
  promptLogprobs: request.promptLogprobs,
  promptLogprobsFrom: request.promptLogprobsFrom,
  cacheSalt: request.cacheSalt,
  signal,
  onChunk: trace && ((from, to) => trace.chunk(from, to)),
  onRestored: trace && ((positions) => trace.restored(positions)),
});

const firstMessage = (result: PrefillResult) => ({
  tokens: result.tokens.map(tokenMessage),
  promptLogprobs: result.promptLogprobs.map((token) => (token ? tokenMessage(token) : {})),
  cachedTokens: result.cachedTokens,
  prefillUs: Math.round(result.seconds * 1e6),
  chunks: result.chunks,
});

/** @throws ServingError for every prompt that the engine could not compute. */
function readPrompt(engine: PromptEngine, fingerprint: string, request: PrefillRequest__Output): TokenPrompt {
  if (request.fingerprint !== fingerprint) {
    throw new ServingError(
      'fingerprint_mismatch',
      `the prompt is for model ${request.fingerprint}, this worker serves ${fingerprint}`,
    );
  }
  const ids = Int32Array.from(request.tokenIds);
  const { capacity } = engine.pool;
  if (ids.length === 0) throw new ServingError('invalid_request', 'the prompt has no tokens');
  if (ids.length >= capacity) {
    throw new ServingError(
      'context_length_exceeded',
      `the prompt has ${ids.length} tokens, a slot holds ${capacity} with at least one of output`,
    );
  }
  const wrong = ids.find((id) => id < 0 || id >= engine.vocabSize);
  if (wrong !== undefined) {
    throw new ServingError('invalid_request', `token id ${wrong} is not in the vocabulary of ${engine.vocabSize}`);
  }
  const soft = readSoftTokens(request.soft);
  assertSoftTokens(soft, ids.length, engine.hiddenSize);
  if (request.choices.length === 0) {
    throw new ServingError('invalid_request', 'choices is empty: send at least one Sampling');
  }
  return { ids, soft };
}

/** @throws ServingError invalid_request */
function assertSoftTokens({ positions, vectors }: SoftTokens, promptTokens: number, hiddenSize: number): void {
  const misplaced = positions.findIndex((p, i) => p < 0 || p >= promptTokens || p <= (positions[i - 1] ?? -1));
  if (misplaced >= 0) {
    throw new ServingError(
      'invalid_request',
      `soft position ${positions[misplaced]} (number ${misplaced}) is not valid: positions must ascend and lie below ${promptTokens}`,
    );
  }
  if (vectors.length !== positions.length * hiddenSize) {
    throw new ServingError(
      'invalid_request',
      `${positions.length} soft tokens need ${positions.length} x ${hiddenSize} vector elements, got ${vectors.length}`,
    );
  }
  if (!vectors.every(Number.isFinite)) {
    throw new ServingError('invalid_request', 'the vectors of soft tokens hold a number that is not finite');
  }
}
