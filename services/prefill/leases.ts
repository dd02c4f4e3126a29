/**
 * Staged KV caches. A lease begins when a prompt gets its slot and ends once, for one of the reasons of
 * {@link LeaseEnd}; its slot is then free. Nothing stays staged without an owner: while the lease lives, the caller of
 * Prefill holds its stream open, and a decoder pulls, renews, or comes before the lease expires.
 */
import { randomUUID } from 'node:crypto';
import { Deferred } from '../lib/async/deferred.ts';
import { positionBytes } from '../lib/kv/layout.ts';
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import type { PrefixCache } from '../lib/kv/prefix.ts';
import { ServingError } from '../lib/process/errors.ts';
import { metrics } from '../lib/process/metrics.ts';

/**
 * A lease is `released` by all readers, `cancelled` by the caller of Prefill, `expired`, or `failed` while computing.
 */
export type LeaseEnd = 'released' | 'cancelled' | 'expired' | 'failed';

export class Lease {
  readonly id = randomUUID();
  readonly slot: KvSlot;
  /** Prompt positions that the cache will hold. */
  readonly positions: number;
  readonly createdAtMs = performance.now();
  readonly #released = new Deferred<void>();
  #readersLeft: number;
  #computed = 0;
  #computedAtMs = 0;
  #firstTokenIds: readonly number[] = [];
  #ended: ServingError | undefined;
  #wake: (() => void)[] = [];

  constructor(slot: KvSlot, positions: number, readers: number) {
    this.slot = slot;
    this.positions = positions;
    this.#readersLeft = readers;
  }

  /** Resolves when all readers have released the lease; rejects when it ended otherwise. */
  get released(): Promise<void> {
    return this.#released.promise;
  }

  get readersLeft(): number {
    return this.#readersLeft;
  }

  get firstTokenIds(): readonly number[] {
    return this.#firstTokenIds;
  }

  /** Time since the last chunk was computed, in microseconds. */
  get sinceComputedUs(): number {
    return Math.round((performance.now() - this.#computedAtMs) * 1000);
  }

  /** Positions [0, computed) are filled and may be pulled. */
  get computed(): number {
    return this.#computed;
  }

  advance(computed: number): void {
    this.#computed = computed;
    this.#computedAtMs = performance.now();
    this.#notify();
  }

  /** Whether the prompt is computed and its first tokens are sampled. */
  get isComplete(): boolean {
    return this.#firstTokenIds.length > 0;
  }

  /** @internal See {@link LeaseTable.complete}. */
  complete(firstTokenIds: readonly number[]): void {
    this.#firstTokenIds = firstTokenIds;
    this.#notify();
  }

  /** @throws ServingError the reason why the lease ended, if it has: its slot may hold another prompt already. */
  assertLive(): void {
    if (this.#ended) throw this.#ended;
  }

  /** Waits for positions beyond `sent` and returns how many are filled. */
  async beyond(sent: number, signal: AbortSignal): Promise<number> {
    while (this.#computed <= sent) await this.#changed(signal);
    this.assertLive();
    return this.#computed;
  }

  /** Waits until the first tokens are known. */
  async completed(signal: AbortSignal): Promise<void> {
    while (!this.isComplete) await this.#changed(signal);
    this.assertLive();
  }

  /** @internal One reader has its copy or will never come. */
  readerDone(): void {
    this.#readersLeft = Math.max(0, this.#readersLeft - 1);
  }

  /** @internal Only LeaseTable ends leases. */
  settle(error?: ServingError): void {
    this.#ended = error ?? new ServingError('lease_unknown', `lease ${this.id} was released`);
    if (error) this.#released.reject(error);
    else this.#released.resolve();
    this.#notify();
  }

  #notify(): void {
    const waiting = this.#wake;
    this.#wake = [];
    for (const wake of waiting) wake();
  }

  #changed(signal: AbortSignal): Promise<void> {
    this.assertLive();
    signal.throwIfAborted();
    return new Promise((resolve, reject) => {
      const abort = () => reject(signal.reason);
      signal.addEventListener('abort', abort, { once: true });
      this.#wake.push(() => {
        signal.removeEventListener('abort', abort);
        resolve();
      });
    });
  }
}

export class LeaseTable {
  /** A complete lease that nobody uses expires after this time. */
  readonly ttlMs: number;
  readonly #pool: KvPool;
  readonly #prefixes: Pick<PrefixCache, 'release'>;
  readonly #leases = new Map<string, { lease: Lease; timer: NodeJS.Timeout }>();

  /** @param prefixes takes the slots back, so that later prompts can reuse their KV. */
  constructor(pool: KvPool, prefixes: Pick<PrefixCache, 'release'>, ttlMs: number) {
    this.#pool = pool;
    this.#prefixes = prefixes;
    this.ttlMs = ttlMs;
  }

  get size(): number {
    return this.#leases.size;
  }

  open(slot: KvSlot, positions: number, readers: number): Lease {
    const lease = new Lease(slot, positions, readers);
    const timer = setTimeout(() => this.#onExpiry(lease), this.ttlMs);
    this.#leases.set(lease.id, { lease, timer });
    this.observe();
    return lease;
  }

  /** @throws ServingError lease_unknown. */
  get(id: string): Lease {
    const entry = this.#leases.get(id);
    if (entry === undefined) {
      throw new ServingError(
        'lease_unknown',
        `no staged KV cache has lease ${JSON.stringify(id)}: it was released, has expired or never existed`,
      );
    }
    return entry.lease;
  }

  /** The lease is in use: its time starts again. */
  touch(lease: Lease): void {
    this.#leases.get(lease.id)?.timer.refresh();
  }

  /** All positions are filled and the first tokens are known. A lease without readers ends here. */
  complete(lease: Lease, firstTokenIds: readonly number[]): void {
    lease.complete(firstTokenIds);
    if (lease.readersLeft === 0) this.end(lease, 'released');
    else this.touch(lease);
  }

  /**
   * One reader has its copy or will never come. A prompt that still computes goes on, because its caller waits for the
   * first token.
   * @returns the readers that may still come.
   * @throws ServingError lease_unknown.
   */
  release(id: string): number {
    return this.readerDone(this.get(id));
  }

  /** Does the same as {@link release}; a lease that has ended already is left alone. */
  readerDone(lease: Lease): number {
    lease.readerDone();
    if (lease.readersLeft === 0 && lease.isComplete) this.end(lease, 'released');
    return lease.readersLeft;
  }

  /** Ends a lease and frees its slot. Ending it again does nothing. */
  end(lease: Lease, reason: LeaseEnd, cause?: unknown): void {
    if (!this.#close(lease, reason, cause)) return;
    this.#prefixes.release(lease.slot);
    this.observe();
  }

  /** Ends a lease for its last reader, which takes over the slot itself instead of a copy. */
  adopt(lease: Lease): KvSlot {
    lease.assertLive();
    lease.readerDone();
    this.#close(lease, 'released');
    this.observe();
    return lease.slot;
  }

  #close(lease: Lease, reason: LeaseEnd, cause?: unknown): boolean {
    const entry = this.#leases.get(lease.id);
    if (entry === undefined) return false;
    clearTimeout(entry.timer);
    this.#leases.delete(lease.id);
    lease.settle(reason === 'released' ? undefined : this.#error(lease, reason, cause));
    metrics.leasesEnded.inc({ reason });
    return true;
  }

  /** Only a complete lease waits for its decoder. Until then its time is renewed, however long a chunk takes. */
  #onExpiry(lease: Lease): void {
    if (lease.isComplete) this.end(lease, 'expired');
    else this.touch(lease);
  }

  /** Brings the gauges up to date. */
  observe(): void {
    let positions = 0;
    const nowMs = performance.now();
    let oldestMs = nowMs;
    for (const { lease } of this.#leases.values()) {
      positions += lease.positions;
      oldestMs = Math.min(oldestMs, lease.createdAtMs);
    }
    metrics.stagedBytes.set(positions * positionBytes(this.#pool.layout));
    metrics.stagedAge.set((nowMs - oldestMs) / 1000);
    metrics.kvUsage.set(this.#pool.reserved / this.#pool.slots);
  }

  #error(lease: Lease, reason: Exclude<LeaseEnd, 'released'>, cause: unknown): ServingError {
    if (reason === 'expired') {
      return new ServingError(
        'lease_expired',
        `no decoder took KV cache ${lease.id} within --kv-lease-ms ${this.ttlMs}`,
      );
    }
    // The caller may only have lost its connection to us. `lease_unknown` lets the gateway replay.
    if (reason === 'cancelled') {
      return new ServingError('lease_unknown', `KV cache ${lease.id} was cancelled by the caller of Prefill`);
    }
    return ServingError.from(cause);
  }
}
