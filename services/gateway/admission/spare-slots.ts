/**
 * Decode slots that stay free for tenants below their share. A tenant that asks now and then finds all slots taken by
 * tenants that want everything, and would wait until one comes free or until sequences make way (preemption.ts). So
 * while several tenants are active, those that hold their share or more leave a slot of each worker free. The last slot
 * of all is for active tenants that hold none: others below their share would take it as well. A tenant that is alone
 * gets all of them.
 */
import type { DecodeRoom } from '../workers/worker-pool.ts';
import type { Standing } from './preemption.ts';

/** How long after its last request a tenant counts as active, in ms: someone who writes code pauses to think. */
const ACTIVE_MS = 60_000;
/** A worker with fewer slots than this for each spare one leaves fewer free: what stands by serves nobody. */
const SLOTS_PER_SPARE = 4;

/** Tenants that asked for something lately. */
export class ActiveTenants {
  /** The least recent first. */
  readonly #askedMs = new Map<string, number>();

  /** @param nowMs monotonic clock. */
  asked(tenant: string, nowMs: number): void {
    this.#askedMs.delete(tenant);
    this.#askedMs.set(tenant, nowMs);
  }

  at(nowMs: number): Iterable<string> {
    for (const [tenant, askedMs] of this.#askedMs) {
      if (nowMs - askedMs < ACTIVE_MS) break;
      this.#askedMs.delete(tenant);
    }
    return this.#askedMs.keys();
  }
}

/** Tenants among which the slots are shared. */
export interface Sharing {
  readonly tenants: number;
  /** Those of them that hold no sequence. */
  readonly withoutAny: number;
  /** Their weights together. */
  readonly weight: number;
}

/**
 * @param active tenants that asked for something lately; those that hold sequences count as well.
 * @param counts sequences of each tenant, by all gateways.
 */
export function sharingTenants(
  active: Iterable<string>,
  counts: ReadonlyMap<string, number>,
  { weightOf }: Pick<Standing, 'weightOf'>,
): Sharing {
  const tenants = new Set([...active, ...counts.keys()]);
  let weight = 0;
  for (const tenant of tenants) weight += weightOf(tenant);
  return { tenants: tenants.size, withoutAny: tenants.size - counts.size, weight };
}

/**
 * Whether the slots that are free are left to others: a sequence more would give the tenant more than its share of all
 * slots, and no worker has more of them free than it keeps to spare; or one slot of all is free at most, and somebody
 * holds none. Where none is free, a sequence that waited in a worker would have the next one: so it waits in the
 * gateway.
 * @param held sequences of the tenant, by all gateways.
 * @param decoders workers whose slots hold the sequence.
 * @param sharing the tenant is among them if it holds any.
 * @param spare slots of each worker that are left free.
 */
export function leavesSpare(
  tenant: string,
  held: number,
  decoders: readonly DecodeRoom[],
  sharing: Sharing,
  spare: number,
  { weightOf }: Pick<Standing, 'weightOf'>,
): boolean {
  // Whatever its share is, one sequence of each tenant may run.
  if (held <= 0 || decoders.length === 0 || sharing.tenants === 1) return false;
  const spareOf = (slots: number) => Math.min(spare, Math.floor(slots / SLOTS_PER_SPARE));
  if (decoders.some(({ slots, freeSlots }) => freeSlots > spareOf(slots))) return false;
  const free = decoders.reduce((sum, { freeSlots }) => sum + Math.max(0, freeSlots), 0);
  if (sharing.withoutAny > 0 && free <= 1 && decoders.some(({ slots }) => spareOf(slots) > 0)) return true;
  const slots = decoders.reduce((sum, worker) => sum + worker.slots, 0);
  return held + 1 > (slots * weightOf(tenant)) / sharing.weight;
}
