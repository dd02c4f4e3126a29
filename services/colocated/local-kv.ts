/** KV that was computed in this very process: the last reader goes on in the slot itself, others get a copy. */
import type { Acquired, KvSource, RemoteKv } from '../decode/kv-source.ts';
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import type { PrefixCache } from '../lib/kv/prefix.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { KvHandle__Output } from '../lib/rpc/gen/llavacode/v1/KvHandle.ts';
import type { Lease, LeaseTable } from '../prefill/leases.ts';

export interface LocalParts {
  readonly pool: KvPool;
  readonly leases: LeaseTable;
  readonly prefixes: PrefixCache;
  /** For KV of another process. */
  readonly remote: RemoteKv;
  /** host:port of this process. */
  readonly address: () => string;
  /** Runs between two runs of the engine: nothing writes to any slot meanwhile. */
  readonly exclusive: (work: () => void) => Promise<void>;
}

export class LocalKv implements KvSource {
  readonly #parts: LocalParts;
  /** Indices of slots that sequences go on in, or are on their way to. */
  readonly #slots = new Set<number>();
  /** Copies that await their turn: readers that the lease still counts. */
  readonly #copying = new WeakMap<Lease, number>();

  constructor(parts: LocalParts) {
    this.#parts = parts;
  }

  get waiting(): number {
    return this.#parts.remote.waiting;
  }

  get held(): number {
    return this.#slots.size + this.#parts.remote.held;
  }

  async acquire(handle: KvHandle__Output, signal: AbortSignal): Promise<Acquired> {
    const { leases, remote, address } = this.#parts;
    if (handle.address !== address()) return remote.acquire(handle, signal);
    const lease = leases.get(handle.leaseId);
    if (lease.positions !== handle.positions) {
      throw new ServingError(
        'invalid_request',
        `the handle of lease ${lease.id} says ${handle.positions} positions, the KV cache has ${lease.positions}`,
      );
    }
    try {
      await lease.completed(signal);
    } catch (error) {
      leases.readerDone(lease); // this reader will never come
      throw error;
    }
    const { firstTokenIds } = lease;
    const started = performance.now();
    const copying = this.#copying.get(lease) ?? 0;
    const slot = lease.readersLeft - copying > 1 ? await this.#copy(lease) : await this.#adopt(lease, copying);
    const seconds = (performance.now() - started) / 1000;
    return { slot, queueSeconds: 0, firstTokenIds, bytes: 0, seconds, exposedSeconds: seconds };
  }

  async #adopt(lease: Lease, copying: number): Promise<KvSlot> {
    const { leases, exclusive } = this.#parts;
    if (copying > 0) await exclusive(() => {}); // their turns are before this one
    const slot = leases.adopt(lease);
    const place = nearest(this.#slots, slot.index, this.#parts.pool);
    const own = this.#own(slot);
    const moved = place === undefined ? undefined : this.#parts.prefixes.move(own, lease.positions, place);
    if (moved === undefined) return own;
    const there = this.#own(moved.slot);
    await exclusive(moved.finish);
    return there;
  }

  /** @throws ServingError saturated when no slot is free for a copy. */
  async #copy(lease: Lease): Promise<KvSlot> {
    const { pool, leases, exclusive } = this.#parts;
    lease.assertLive();
    const reserved = pool.reserve(lease.positions);
    if (reserved === undefined) {
      // Waiting here would be for ever where all wait so: it comes again as a prompt, which waits for its turn.
      leases.readerDone(lease);
      throw new ServingError('saturated', `all ${pool.slots} slots are taken: no room for another choice`, {
        retryAfterSeconds: 1,
        limit: 'slots',
      });
    }
    const slot = this.#own(reserved);
    const count = (change: number) => this.#copying.set(lease, (this.#copying.get(lease) ?? 0) + change);
    count(1);
    try {
      await exclusive(() => {
        count(-1);
        lease.assertLive();
        pool.copy(lease.slot.index, slot.index, lease.positions);
        leases.readerDone(lease);
      });
      return slot;
    } catch (error) {
      slot.release();
      throw error;
    }
  }

  /** The slot goes back to where its prompt can be found again. */
  #own(slot: KvSlot): KvSlot {
    const { prefixes } = this.#parts;
    this.#slots.add(slot.index);
    let held = true;
    const giveBack = () => {
      if (!held) return;
      held = false;
      this.#slots.delete(slot.index);
      prefixes.release(slot);
    };
    return { index: slot.index, release: giveBack, keep: giveBack };
  }
}

/**
 * Where a sequence makes the steps of all of them span fewer slots than at `own`; undefined where nowhere does. Slots that
 * a step spans for nothing cost as much as those of sequences: with four of 0.5B among kept prompts, a step took 83 ms
 * instead of 40; to exchange two slots of 2,000 tokens takes 11 ms.
 */
export function nearest(
  others: ReadonlySet<number>,
  own: number,
  pool: Pick<KvPool, 'slots' | 'isHeld' | 'isKept'>,
): number | undefined {
  if (others.size === 0) return undefined;
  const [low, high] = [Math.min(...others), Math.max(...others)];
  const span = (index: number) => Math.max(high, index) - Math.min(low, index);
  const places = Array.from({ length: pool.slots }, (_, index) => index).filter(
    (index) => !pool.isHeld(index) && span(index) < span(own),
  );
  // A free one has nothing to be exchanged.
  const cost = (index: number) => 2 * span(index) + (pool.isKept(index) ? 1 : 0);
  return places.sort((a, b) => cost(a) - cost(b))[0];
}
