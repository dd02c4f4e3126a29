/**
 * Which sequences make way for a prompt that finds all slots taken. A tenant whose sequences are long would otherwise
 * keep the slots until they end, whatever the queue's order is. Pure: no clock, no workers.
 *
 * A tenant may gain slots only while it has less than its share of both resources, tokens and slots. A sequence makes
 * way only if its tenant
 *
 * - with one sequence less, still holds at least as much for its weight as the other one with one more, and
 * - was served at least as many tokens for its weight as the other one. Without this a tenant with long prompts and
 *   short outputs, which holds hardly any slot at a time, got several times its share of tokens by preemption.
 *
 * From this follows:
 *
 * - No tenant that is alone, or has no more than its share, loses a sequence.
 * - It comes to an end: each exchange brings the two tenants nearer to each other, and none can be turned round.
 * - Everybody gets on: the youngest sequence goes, and a tenant's oldest one never does. It runs to its end, then the
 *   next one is the oldest.
 */
import type { DecodeRoom } from '../workers/worker-pool.ts';

/** A sequence that was given to a decode worker. */
export interface PlacedSequence {
  readonly tenant: string;
  /** Address of the decode worker. */
  readonly address: string;
  /** When its prompt entered the queue for the first time, by our clock. */
  readonly enteredMs: number;
  /** Sequences that were placed before it. */
  readonly order: number;
}

/** What tenants are owed, whatever they hold. */
export interface Standing {
  /** A tenant's share of the service, relative to the others'; above 0. */
  readonly weightOf: (tenant: string) => number;
  /** Tokens that a tenant was served so far, divided by its weight. */
  readonly servedOf: (tenant: string) => number;
}

export interface Exchange<S> {
  /** Sequences that make way; those that only waited for a slot free none by leaving. */
  readonly victims: readonly S[];
  /** Slots that are free when all of them have left. */
  readonly slots: number;
}

/**
 * The sequences that make way so that up to `wanted` sequences of a tenant each get a slot; none where the rule allows
 * none, or where a slot is free.
 */
export function sequencesToPreempt<S extends PlacedSequence>(
  tenant: string,
  wanted: number,
  placed: Iterable<S>,
  decoders: readonly DecodeRoom[],
  standing: Standing,
): Exchange<S> {
  const holdings = new Holdings([...placed].sort(byAge), standing);
  const free = new Map(decoders.map(({ address, freeSlots }) => [address, freeSlots]));
  const all: S[] = [];
  let slots = 0;
  for (; slots < wanted; slots++) {
    let best: { address: string; victims: S[] } | undefined;
    for (const [address, freeSlots] of free) {
      if (freeSlots > 0) return { victims: all, slots };
      const victims = holdings.makeWay(tenant, address, 1 - freeSlots);
      if (victims && victims.length < (best?.victims.length ?? Infinity)) best = { address, victims };
    }
    if (best === undefined) break;
    all.push(...best.victims);
    holdings.exchange(best.victims, tenant);
    free.set(best.address, 0);
  }
  return { victims: all, slots };
}

/**
 * Whether a tenant, with one sequence more, would hold so many that one of them could be made to make way at once for
 * another tenant that holds some or waits.
 */
export function isAboveShare(
  tenant: string,
  waiting: Iterable<string>,
  placed: Iterable<PlacedSequence>,
  { weightOf, servedOf }: Standing,
): boolean {
  const held = new Map([tenant, ...waiting].map((each) => [each, 0]));
  for (const each of placed) held.set(each.tenant, (held.get(each.tenant) ?? 0) + 1);
  const own = held.get(tenant)! / weightOf(tenant);
  const served = servedOf(tenant);
  return [...held].some(([other, count]) => {
    return other !== tenant && (count + 1) / weightOf(other) <= own && servedOf(other) <= served;
  });
}

const byAge = (a: PlacedSequence, b: PlacedSequence) => a.enteredMs - b.enteredMs || a.order - b.order;

/** Sequences by the tenants that hold them. */
class Holdings<S extends PlacedSequence> {
  readonly #standing: Standing;
  /** The oldest first. */
  #sequences: readonly S[];
  readonly #counts = new Map<string, number>();
  /** The oldest sequence of each tenant. */
  readonly #oldest = new Map<string, S>();

  constructor(sequences: readonly S[], standing: Standing) {
    this.#sequences = sequences;
    this.#standing = standing;
    for (const sequence of sequences) {
      this.#counts.set(sequence.tenant, this.#held(sequence.tenant) + 1);
      if (!this.#oldest.has(sequence.tenant)) this.#oldest.set(sequence.tenant, sequence);
    }
  }

  /** `count` sequences of one worker that may go so that `tenant` gets one more; undefined if there are not as many. */
  makeWay(tenant: string, address: string, count: number): S[] | undefined {
    const { weightOf, servedOf } = this.#standing;
    const limit = (this.#held(tenant) + 1) / weightOf(tenant);
    const served = servedOf(tenant);
    const left = new Map(this.#counts);
    const victims: S[] = [];
    while (victims.length < count) {
      let victim: S | undefined;
      let most = -Infinity;
      for (const sequence of this.#sequences) {
        const { tenant: other } = sequence;
        if (other === tenant || sequence.address !== address || victims.includes(sequence)) continue;
        if (sequence === this.#oldest.get(other) || servedOf(other) < served) continue;
        const [held, weight] = [left.get(other) ?? 0, weightOf(other)];
        // On ties a later one of the list, which is younger, goes first.
        if ((held - 1) / weight < limit || held / weight < most) continue;
        victim = sequence;
        most = held / weight;
      }
      if (victim === undefined) return undefined;
      victims.push(victim);
      left.set(victim.tenant, (left.get(victim.tenant) ?? 0) - 1);
    }
    return victims;
  }

  /** The victims are gone, and `tenant` has one sequence more. */
  exchange(victims: readonly S[], tenant: string): void {
    for (const victim of victims) this.#counts.set(victim.tenant, this.#held(victim.tenant) - 1);
    this.#sequences = this.#sequences.filter((sequence) => !victims.includes(sequence));
    this.#counts.set(tenant, this.#held(tenant) + 1);
  }

  #held(tenant: string): number {
    return this.#counts.get(tenant) ?? 0;
  }
}
