/**
 * Which sequences make way for a prompt that finds all slots taken. A tenant whose sequences are long would otherwise
 * keep the slots until they end, whatever the queue's order is. Pure: no clock, no workers.
 *
 * A tenant may gain slots only while it has less than its share of both resources, tokens and slots. A sequence makes
 * way only if its tenant
 *
 * - with one sequence less, still holds at least as much for its weight as the other one with one more, and
 * - was served as many tokens for its weight as the other one, less {@link LARGEST_LEAD}. Without this a tenant with
 *   long prompts and short outputs, which holds hardly any slot at a time, got several times its share of tokens.
 *
 * Sequences count wherever they were placed from, but a gateway ends only its own: of the tenant that holds the most
 * for its weight, the gateway that placed the most gives way, also for prompts that wait at others. From this follows:
 *
 * - No tenant that is alone, or has no more than its share, loses a sequence.
 * - It comes to an end: each exchange brings the two tenants nearer to each other, and none can be turned round. With
 *   news that are old two gateways may each make one exchange where one was due; how often is bounded by the caller.
 * - Everybody gets on: the youngest sequence goes, and the oldest one that a gateway has of a tenant never does. It
 *   runs to its end, then the next one is the oldest.
 */
import type { DecodeRoom } from '../workers/worker-pool.ts';
import { LARGEST_LEAD } from './fair-queue.ts';

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

/** Sequences of a tenant on one worker that another gateway has placed. */
export interface HeldElsewhere {
  readonly tenant: string;
  readonly address: string;
  readonly sequences: number;
  /** Whether that gateway, rather than this one, gives way where both hold as many. */
  readonly first: boolean;
}

export interface Exchange<S> {
  /** Sequences that make way; those that only waited for a slot free none by leaving. */
  readonly victims: readonly S[];
  /** Slots that are free when all of them have left. */
  readonly slots: number;
  /** Whether sequences of another gateway have to make way, for this slot or for the next. */
  readonly elsewhere: boolean;
}

/**
 * The sequences that make way so that up to `wanted` sequences of a tenant each get a slot; none where the rule allows
 * none, or where a slot is free. Slots for which other gateways would have to give way as well are not among them.
 */
export function sequencesToPreempt<S extends PlacedSequence>(
  tenant: string,
  wanted: number,
  placed: Iterable<S>,
  decoders: readonly DecodeRoom[],
  standing: Standing,
  heldElsewhere: readonly HeldElsewhere[] = [],
): Exchange<S> {
  const victims: S[] = [];
  let slots = 0;
  for (const way of waysFor(tenant, placed, decoders, standing, heldElsewhere)) {
    if (slots === wanted) break;
    if (way.elsewhere > 0 || way.short) return { victims, slots, elsewhere: !way.short };
    victims.push(...way.victims);
    slots++;
  }
  return { victims, slots, elsewhere: false };
}

/**
 * The sequences of this gateway that make way for a tenant that several gateways, or others than this one, have to free
 * slots for. All of them divide the sequences in the same way, by what they know of each other.
 */
export function sequencesToYield<S extends PlacedSequence>(
  tenant: string,
  wanted: number,
  placed: Iterable<S>,
  decoders: readonly DecodeRoom[],
  standing: Standing,
  heldElsewhere: readonly HeldElsewhere[],
): readonly S[] {
  const victims: S[] = [];
  let slots = 0;
  for (const way of waysFor(tenant, placed, decoders, standing, heldElsewhere)) {
    // Those that the rule allows do not free a slot yet, but fewer wait for one: only for the first slot.
    if (slots === wanted || (way.short && slots > 0)) break;
    victims.push(...way.victims);
    slots++;
  }
  return victims;
}

/** The ways to free one slot after the other, the one with the fewest victims first; nothing once a slot is free. */
function* waysFor<S extends PlacedSequence>(
  tenant: string,
  placed: Iterable<S>,
  decoders: readonly DecodeRoom[],
  standing: Standing,
  heldElsewhere: readonly HeldElsewhere[],
): Generator<Way<S>> {
  const holdings = new Holdings([...placed].sort(byAge), heldElsewhere, standing);
  const free = new Map(decoders.map(({ address, freeSlots }) => [address, freeSlots]));
  const effort = ({ short, victims, elsewhere }: Way<S>) => (short ? 1e9 : 0) + victims.length + elsewhere;
  for (;;) {
    let best: Way<S> | undefined;
    for (const [address, freeSlots] of free) {
      if (freeSlots > 0) return;
      const way = holdings.makeWay(tenant, address, 1 - freeSlots);
      if (best === undefined || effort(way) < effort(best)) best = way;
    }
    if (best === undefined) return;
    yield best;
    if (best.short) return;
    holdings.exchange(best, tenant);
    free.set(best.address, 0);
  }
}

/**
 * Whether a tenant, with one sequence more, would hold so many that one of them could be made to make way at once for
 * one of the others.
 */
export function isAboveShare(
  tenant: string,
  others: Iterable<string>,
  placed: Iterable<PlacedSequence>,
  { weightOf, servedOf }: Standing,
  heldElsewhere: readonly HeldElsewhere[] = [],
): boolean {
  const held = heldBy(placed, heldElsewhere);
  const own = (held.get(tenant) ?? 0) / weightOf(tenant);
  const served = servedOf(tenant) + LARGEST_LEAD;
  return [...others].some((other) => {
    return other !== tenant && ((held.get(other) ?? 0) + 1) / weightOf(other) <= own && servedOf(other) <= served;
  });
}

/** Sequences of each tenant. */
function heldBy(placed: Iterable<PlacedSequence>, elsewhere: readonly HeldElsewhere[]): Map<string, number> {
  const held = new Map<string, number>();
  const count = (tenant: string, sequences: number) => held.set(tenant, (held.get(tenant) ?? 0) + sequences);
  for (const { tenant } of placed) count(tenant, 1);
  for (const { tenant, sequences } of elsewhere) count(tenant, sequences);
  return held;
}

const byAge = (a: PlacedSequence, b: PlacedSequence) => a.enteredMs - b.enteredMs || a.order - b.order;

/** How one slot of a worker is made free. */
interface Way<S> {
  readonly address: string;
  /** Sequences of ours that go. */
  readonly victims: readonly S[];
  /** How many of other gateways go. */
  readonly elsewhere: number;
  /** What is left of the sequences of other gateways. */
  readonly left: readonly HeldElsewhere[];
  /** The rule allows no more, and the slot is not free yet. */
  readonly short: boolean;
}

/** Sequences by the tenants that hold them. */
class Holdings<S extends PlacedSequence> {
  readonly #standing: Standing;
  #elsewhere: readonly HeldElsewhere[];
  /** Our own, the oldest first. */
  #sequences: readonly S[];
  #counts: Map<string, number>;
  /** Sequences that tenants have gained by exchanges. */
  readonly #gained = new Map<string, number>();
  /** The oldest of our own of each tenant. */
  readonly #oldest = new Map<string, S>();

  constructor(sequences: readonly S[], elsewhere: readonly HeldElsewhere[], standing: Standing) {
    this.#sequences = sequences;
    this.#elsewhere = elsewhere;
    this.#standing = standing;
    this.#counts = heldBy(sequences, elsewhere);
    for (const sequence of sequences.toReversed()) this.#oldest.set(sequence.tenant, sequence);
  }

  /** The sequences of one worker that go, `count` if the rule allows as many, so that `tenant` gets one more. */
  makeWay(tenant: string, address: string, count: number): Way<S> {
    const held = new Map(this.#counts);
    let own = this.#sequences.filter((each) => each.address === address);
    let left = this.#elsewhere;
    const victims: S[] = [];
    let elsewhere = 0;
    while (victims.length + elsewhere < count) {
      const movable = own.filter((each) => each !== this.#oldest.get(each.tenant));
      const others = left.filter((each) => each.address === address && each.sequences > 0);
      const loser = this.#loser(tenant, [...others, ...movable], held);
      if (loser === undefined) return { address, victims, elsewhere, left, short: true };
      held.set(loser, held.get(loser)! - 1);
      const victim = movable.findLast((each) => each.tenant === loser);
      const other = victimElsewhere(loser, own, others);
      if (victim && (other === undefined || !other.before)) {
        victims.push(victim);
        own = own.filter((each) => each !== victim);
      } else {
        elsewhere++;
        left = left.map((each) => (each === other?.from ? { ...each, sequences: each.sequences - 1 } : each));
      }
    }
    return { address, victims, elsewhere, left, short: false };
  }

  /** The tenant with the most for its weight that may lose one of these sequences to `tenant`. */
  #loser(tenant: string, sequences: readonly { tenant: string }[], held: ReadonlyMap<string, number>) {
    const { weightOf, servedOf } = this.#standing;
    const limit = ((this.#counts.get(tenant) ?? 0) + 1) / weightOf(tenant);
    const served = servedOf(tenant) - LARGEST_LEAD;
    let loser: string | undefined;
    let most = -Infinity;
    for (const { tenant: other } of sequences) {
      const [count, weight] = [held.get(other)!, weightOf(other)];
      if (other === tenant || (count - 1) / weight < limit || servedOf(other) < served) continue;
      // On ties a later one of the list, which is younger, goes first.
      if (count / weight < most) continue;
      loser = other;
      most = count / weight;
    }
    return loser;
  }

  /** The victims are gone, and `tenant` has one sequence more. */
  exchange({ victims, left }: Way<S>, tenant: string): void {
    this.#sequences = this.#sequences.filter((sequence) => !victims.includes(sequence));
    this.#elsewhere = left;
    const gained = (this.#gained.get(tenant) ?? 0) + 1;
    this.#gained.set(tenant, gained);
    this.#counts = heldBy(this.#sequences, left);
    this.#counts.set(tenant, (this.#counts.get(tenant) ?? 0) + gained);
  }
}

/**
 * The gateway other than this one that holds the most of a tenant's sequences on a worker, and whether it gives way
 * before this one; undefined where there is none.
 */
function victimElsewhere(
  tenant: string,
  own: readonly PlacedSequence[],
  others: readonly HeldElsewhere[],
): { from: HeldElsewhere; before: boolean } | undefined {
  let from: HeldElsewhere | undefined;
  for (const each of others) {
    if (each.tenant === tenant && (from === undefined || each.sequences > from.sequences)) from = each;
  }
  if (from === undefined) return undefined;
  const count = own.filter((each) => each.tenant === tenant).length;
  return { from, before: from.sequences > count || (from.sequences === count && from.first) };
}
