/** How the KV cache of a sequence gets into a slot of this worker. */
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import type { TraceHeaders } from '../lib/process/span.ts';
import type { KvHandle__Output } from '../lib/rpc/gen/llavacode/v1/KvHandle.ts';
import type { KvPuller, PulledKv } from './kv-puller.ts';
import { SlotQueue } from './slot-queue.ts';

/** The caller owns the slot and releases it. */
export interface AcquiredKv extends PulledKv {
  readonly slot: KvSlot;
  /** How long the sequence waited for the slot. */
  readonly queueSeconds: number;
}

export interface KvSource {
  /** Sequences that wait for a slot. */
  readonly waiting: number;
  /** Slots that callers hold. */
  readonly held: number;
  /**
   * @param betweenSteps see DecodeLoop.
   * @param trace that the calls for it belong to.
   * @throws ServingError saturated, kv_handle_untrusted, or whatever {@link KvPuller.pull} throws; the signal's reason.
   */
  acquire(
    handle: KvHandle__Output,
    signal: AbortSignal,
    betweenSteps: () => Promise<void>,
    trace?: TraceHeaders,
  ): Promise<AcquiredKv>;
}

/** Reserves a slot, then pulls the cache from the prefill worker that holds it. */
export class RemoteKv implements KvSource {
  readonly #slots: SlotQueue;
  readonly #puller: KvPuller;

  /** @param limit sequences that may wait. */
  constructor(pool: KvPool, puller: KvPuller, limit: number) {
    this.#slots = new SlotQueue(pool, limit);
    this.#puller = puller;
  }

  get waiting(): number {
    return this.#slots.waiting;
  }

  get held(): number {
    return this.#slots.granted;
  }

  async acquire(
    handle: KvHandle__Output,
    signal: AbortSignal,
    betweenSteps: () => Promise<void>,
    trace?: TraceHeaders,
  ): Promise<AcquiredKv> {
    this.#puller.assertTrusted(handle);
    const arrivedAtMs = performance.now();
    const slot = await this.#awaitSlot(handle, signal);
    const queueSeconds = (performance.now() - arrivedAtMs) / 1000;
    try {
      await betweenSteps();
      return { ...(await this.#puller.pull(handle, slot, signal, trace)), slot, queueSeconds };
    } catch (error) {
      slot.release();
      throw error;
    }
  }

  /** Renews the lease of the cache while it waits, and stops waiting when the cache is lost. */
  async #awaitSlot(handle: KvHandle__Output, signal: AbortSignal): Promise<KvSlot> {
    const over = new AbortController();
    const live = AbortSignal.any([signal, over.signal]);
    this.#puller.keepLease(handle, live).catch((error: unknown) => over.abort(error));
    try {
      return await this.#slots.reserve(handle.positions, live);
    } finally {
      over.abort();
    }
  }
}
