/** How the KV cache of a sequence gets into a slot of ours. */
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import { metrics } from '../lib/process/metrics.ts';
import type { KvHandle__Output } from '../lib/rpc/gen/llavacode/v1/KvHandle.ts';
import type { KvPuller, Received } from './kv-puller.ts';
import { SlotQueue } from './slot-queue.ts';

/** The slot is the caller's, who gives it back. */
export interface Acquired extends Received {
  readonly slot: KvSlot;
  /** How long the sequence waited for the slot. */
  readonly queueSeconds: number;
}

export interface KvSource {
  /** Sequences that wait for a slot. */
  readonly waiting: number;
  /** Slots in the hands of callers. */
  readonly held: number;
  /** @throws ServingError saturated, whatever {@link KvPuller.pull} throws; the signal's reason. */
  acquire(handle: KvHandle__Output, signal: AbortSignal): Promise<Acquired>;
}

/** Reserves a slot, then pulls the cache from the prefill worker that holds it. */
export class RemoteKv implements KvSource {
  readonly #admission: SlotQueue;
  readonly #puller: KvPuller;
  readonly #betweenSteps: () => Promise<void>;

  /**
   * @param limit sequences that may wait.
   * @param betweenSteps see DecodeLoop.
   */
  constructor(pool: KvPool, puller: KvPuller, limit: number, betweenSteps: () => Promise<void>) {
    this.#admission = new SlotQueue(pool, limit);
    this.#puller = puller;
    this.#betweenSteps = betweenSteps;
  }

  get waiting(): number {
    return this.#admission.waiting;
  }

  get held(): number {
    return this.#admission.granted;
  }

  async acquire(handle: KvHandle__Output, signal: AbortSignal): Promise<Acquired> {
    const arrivedAtMs = performance.now();
    const slot = await this.#awaitSlot(handle, signal);
    const queueSeconds = (performance.now() - arrivedAtMs) / 1000;
    metrics.queueTime.observe(queueSeconds);
    try {
      await this.#betweenSteps();
      return { ...(await this.#puller.pull(handle, slot, signal)), slot, queueSeconds };
    } catch (error) {
      slot.release();
      throw error;
    }
  }

  /** The cache is kept where it is as long as we wait; without it there is nothing to wait for. */
  async #awaitSlot(handle: KvHandle__Output, signal: AbortSignal): Promise<KvSlot> {
    const over = new AbortController();
    const live = AbortSignal.any([signal, over.signal]);
    this.#puller.keep(handle, live).catch((error: unknown) => over.abort(error));
    try {
      return await this.#admission.reserve(handle.positions, live);
    } finally {
      over.abort();
    }
  }
}
