/** The prefill worker as a gRPC service: Prefill for the gateway, Kv for decoders. */
import { KvSender } from '../lib/kv/handoff.ts';
import type { KvPool } from '../lib/kv/pool.ts';
import { PrefixCache } from '../lib/kv/prefix.ts';
import { readWireType, type WireType } from '../lib/kv/wire.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { Logger } from '../lib/process/log.ts';
import type { QueueOrder } from '../lib/request/queue-order.ts';
import type { TokenPrompt } from '../lib/request/sequence.ts';
import type { KvFrame } from '../lib/rpc/gen/llavacode/v1/KvFrame.ts';
import type { PrefillEvent } from '../lib/rpc/gen/llavacode/v1/PrefillEvent.ts';
import type { PrefillRequest__Output } from '../lib/rpc/gen/llavacode/v1/PrefillRequest.ts';
import type { PullRequest__Output } from '../lib/rpc/gen/llavacode/v1/PullRequest.ts';
import type { ReleaseRequest__Output } from '../lib/rpc/gen/llavacode/v1/ReleaseRequest.ts';
import type { RenewRequest__Output } from '../lib/rpc/gen/llavacode/v1/RenewRequest.ts';
import type { WorkerDescription } from '../lib/rpc/gen/llavacode/v1/WorkerDescription.ts';
import { readSampling, readSoftTokens, tokenMessage } from '../lib/rpc/messages.ts';
import { mount, streaming, unary } from '../lib/rpc/server.ts';
import { LeaseTable } from './leases.ts';
import { PromptQueue } from './prompt-queue.ts';
import { measureRate } from './warm-up.ts';
import { type Pending, PrefillWorker, type PromptEngine } from './worker.ts';

export interface PrefillOptions {
  readonly model: string;
  readonly fingerprint: string;
  /** Tokens of the next prompt chunk. */
  readonly chunkTokens: () => number;
  readonly queueTokens: number;
  readonly queueOrder: QueueOrder;
  readonly kvLeaseMs: number;
  /** Slots of the same pool that are not leased: sequences that decode here. */
  readonly heldElsewhere?: () => number;
  /** Whether others than prompts want the engine. */
  readonly wantedElsewhere?: () => boolean;
  /** Refuses new prompts once aborted. */
  readonly draining: AbortSignal;
  /** host:port under which decoders reach this worker; known once the server listens. */
  readonly address: () => string;
}

export function createPrefillService(engine: PromptEngine, options: PrefillOptions, log: Logger) {
  const { pool } = engine;
  const { fingerprint } = options;
  const queue = new PromptQueue<Pending>(options.queueTokens, options.queueOrder);
  const prefixes = new PrefixCache(pool);
  const leases = new LeaseTable(pool, prefixes, options.kvLeaseMs);
  const onIdle = () => pool.assertConserved(leases.size + (options.heldElsewhere?.() ?? 0));
  const { chunkTokens } = options;
  // What nobody waits for is not finished by a process that ends.
  const wantedElsewhere = () => options.draining.aborted || options.wantedElsewhere?.() === true;
  const worker = new PrefillWorker(
    engine,
    queue,
    leases,
    prefixes,
    { chunkTokens, onIdle, engineContended: wantedElsewhere },
    log,
  );

  async function* prefill(request: PrefillRequest__Output, signal: AbortSignal): AsyncGenerator<PrefillEvent> {
    options.draining.throwIfAborted();
    const prompt = readPrompt(engine, fingerprint, request);
    const ticket = worker.submit({
      requestId: request.requestId,
      prompt,
      choices: request.choices.map(readSampling),
      readers: request.readers,
      promptLogprobs: request.promptLogprobs,
      cacheSalt: request.cacheSalt,
      signal,
    });
    const { lease, queueSeconds } = await ticket.accepted;
    const { address, kvLeaseMs } = options;
    const kv = { address: address(), leaseId: lease.id, fingerprint, positions: lease.positions, leaseMs: kvLeaseMs };
    yield { accepted: { kv, queueUs: Math.round(queueSeconds * 1e6) } };
    const result = await ticket.done;
    yield {
      first: {
        tokens: result.tokens.map(tokenMessage),
        promptLogprobs: result.promptLogprobs.map((token) => (token ? tokenMessage(token) : {})),
        cachedTokens: result.cachedTokens,
        prefillUs: Math.round(result.seconds * 1e6),
        chunks: result.chunks,
      },
    };
    await lease.released;
    yield { released: {} };
  }

  async function* pull(request: PullRequest__Output, signal: AbortSignal): AsyncGenerator<KvFrame> {
    const lease = leases.get(request.leaseId);
    if (request.fingerprint !== fingerprint) {
      throw new ServingError(
        'fingerprint_mismatch',
        `the puller serves model ${request.fingerprint}, this KV cache is of ${fingerprint}`,
      );
    }
    const { layers, kvHeads, headDim } = pool.layout;
    const dtype = request.dtype === '' ? pool.floats : readWireType(request.dtype);
    assertWireType(pool, dtype);
    const layout = { layers, kvHeads, headDim, dtype };
    yield { manifest: { fingerprint, layout, positions: lease.positions } };
    const sender = new KvSender(pool, lease.slot.index, dtype);
    for (let sent = 0; sent < lease.positions; ) {
      const ready = await lease.beyond(sent, signal);
      for (const frame of sender.pack(sent, ready)) {
        yield { rows: frame };
        leases.touch(lease);
        lease.assertLive(); // while the frame was on its way out
      }
      sent = ready;
    }
    await lease.completed(signal);
    yield { end: { ...sender.end(lease.firstTokenIds), afterPrefillUs: lease.sinceComputedUs } };
  }

  const describe = async (): Promise<WorkerDescription> => {
    options.draining.throwIfAborted(); // it still answers decoders, but is no place for prompts
    return {
      role: 'prefill',
      model: options.model,
      fingerprint,
      layout: { ...pool.layout, dtype: pool.floats },
      capacity: pool.capacity,
      slots: pool.slots,
      freeSlots: pool.free,
      queued: queue.tokens + worker.computing,
      prefillTokensPerSecond: queue.rate,
      overdueMs: engine.overdueMs,
    };
  };

  const release = async (request: ReleaseRequest__Output) => ({ readersLeft: leases.release(request.leaseId) });

  const renew = async (request: RenewRequest__Output) => {
    leases.touch(leases.get(request.leaseId));
    return {};
  };

  return {
    mounts: [
      mount.prefill({ Prefill: streaming(prefill), Describe: unary(describe) }),
      mount.kv({ Pull: streaming(pull), Release: unary(release), Renew: unary(renew) }),
    ],
    leases,
    prefixes,
    /** To be called before it serves: with a rate, what waits is bounded from the first prompt on. */
    warmUp: async () => {
      const { tokens, seconds } = await measureRate(engine);
      queue.measured(tokens, seconds);
    },
    /** Brings gauges up to date before they are read. */
    observe: () => leases.observe(),
  };
}

/** What is computed in 16 bits travels as it is. */
function assertWireType({ floats }: KvPool, dtype: WireType): void {
  if (floats === 'float32' || dtype === floats) return;
  throw new ServingError('kv_layout_mismatch', `this KV cache is of ${floats} and travels as that, not as ${dtype}`);
}

/** @throws ServingError for whatever the engine could not compute. */
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
  const { positions } = soft;
  const misplaced = positions.findIndex((p, i) => p < 0 || p >= ids.length || p <= (positions[i - 1] ?? -1));
  if (misplaced >= 0) {
    throw new ServingError(
      'invalid_request',
      `soft position ${positions[misplaced]} (number ${misplaced}): they must ascend and lie below ${ids.length}`,
    );
  }
  if (soft.vectors.length !== positions.length * engine.hiddenSize) {
    throw new ServingError(
      'invalid_request',
      `${positions.length} soft tokens need ${positions.length} x ${engine.hiddenSize} vector elements, got ${soft.vectors.length}`,
    );
  }
  if (!soft.vectors.every(Number.isFinite)) {
    throw new ServingError('invalid_request', 'the vectors of soft tokens hold what is no finite number');
  }
  if (request.choices.length === 0)
    throw new ServingError('invalid_request', 'choices is empty: at least one Sampling');
  return { ids, soft };
}
