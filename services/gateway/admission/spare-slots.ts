/**
 * Decode slots that stay free for tenants below their share. A tenant that asks now and then finds all slots taken by
 * tenants that want everything, and would wait until one comes free or until sequences make way (preemption.ts). So
 * while several tenants are active, those that hold their share or more leave a slot of each worker free. A tenant that
 * is alone gets all of them.
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

/**
 * Whether the slots that are free are left to others: a sequence more would give the tenant more than its share of all
 * slots, and no worker has more of them free than it keeps to spare. Where none is free, a sequence that waited in a
 * worker would have the next one: so it waits in the gateway.
 * @param counts sequences of each tenant, by all gateways.
 * @param decoders workers whose slots hold the sequence.
 * @param active tenants that asked for something lately; those that hold sequences count as well.
 * @param spare slots of each worker that are left free.
 */
export function leavesSpare(
  tenant: string,
  counts: ReadonlyMap<string, number>,
  decoders: readonly DecodeRoom[],
  active: Iterable<string>,
  spare: number,
  { weightOf }: Pick<Standing, 'weightOf'>,
): boolean {
  const held = counts.get(tenant) ?? 0;
  // Whatever its share is, one sequence of each tenant may run.
  if (held === 0 || decoders.length === 0) return false;
  const spareOf = (slots: number) => Math.min(spare, Math.floor(slots / SLOTS_PER_SPARE));
  if (decoders.some(({ slots, freeSlots }) => freeSlots > spareOf(slots))) return false;
  const slots = decoders.reduce((sum, worker) => sum + worker.slots, 0);
  const tenants = new Set([...active, ...counts.keys(), tenant]);
  if (tenants.size === 1) return false;
  const weights = [...tenants].reduce((sum, each) => sum + weightOf(each), 0);
  return held + 1 > (slots * weightOf(tenant)) / weights;
}
