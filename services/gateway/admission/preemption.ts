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
 * for its weight, the gateway with the most that may go gives way, also for prompts that wait at others. From this
 * follows:
 *
 * - No tenant that is alone, or has no more than its share, loses a sequence.
 * - It comes to an end: each exchange brings the two tenants nearer to each other, and none can be turned round. With
 *   news that are old two gateways may each make one exchange where one was due; how often is bounded by the caller.
 * - Everybody gets on: the youngest sequence goes, and the oldest one that a gateway has of a tenant never does. It
 *   runs to its end, then the next one is the oldest.
 */
import type { DecodeRoom } from '../workers/worker-pool.ts';
import { LARGEST_LEAD } from './fair-queue.ts';

type FreeSlots = Pick<DecodeRoom, 'address' | 'freeSlots'>;

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
  /** How many of them may make way: all but the oldest that the gateway has of the tenant, on whatever worker. */
  readonly movable: number;
  /** Whether that gateway, rather than this one, gives way where as many of both may. */
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

const byAge = (a: PlacedSequence, b: PlacedSequence) => a.enteredMs - b.enteredMs || a.order - b.order;

/** All sequences on decode workers, at one moment. It is built once for many questions, because it sorts them. */
export class SlotHolders<S extends PlacedSequence> {
  /** Sequences of each tenant, by all gateways. */
  readonly counts: ReadonlyMap<string, number>;
  /** Our own that may make way, by worker, the oldest first. */
  readonly movable: ReadonlyMap<string, readonly S[]>;
  /** Those of other gateways that may make way, by worker. */
  readonly movableElsewhere: ReadonlyMap<string, readonly HeldElsewhere[]>;
  /** The oldest of our own of each tenant. */
  readonly #oldest = new Map<string, S>();

  constructor(placed: Iterable<S>, elsewhere: readonly HeldElsewhere[] = []) {
    const counts = new Map<string, number>();
    const count = (tenant: string, sequences: number) => counts.set(tenant, (counts.get(tenant) ?? 0) + sequences);
    const movable = new Map<string, S[]>();
    for (const sequence of [...placed].sort(byAge)) {
      count(sequence.tenant, 1);
      if (this.#oldest.has(sequence.tenant)) listed(movable, sequence.address).push(sequence);
      else this.#oldest.set(sequence.tenant, sequence);
    }
    const movableElsewhere = new Map<string, HeldElsewhere[]>();
    for (const each of elsewhere) {
      count(each.tenant, each.sequences);
      if (each.movable > 0) listed(movableElsewhere, each.address).push(each);
    }
    this.counts = counts;
    this.movable = movable;
    this.movableElsewhere = movableElsewhere;
  }

  /** Whether one of our own may make way. */
  mayMove(sequence: S): boolean {
    return this.#oldest.get(sequence.tenant) !== sequence;
  }
}

function listed<E>(lists: Map<string, E[]>, key: string): E[] {
  const list = lists.get(key) ?? [];
  lists.set(key, list);
  return list;
}

/**
 * The sequences that make way so that up to `wanted` sequences of a tenant each get a slot; none where the rule allows
 * none, or where a slot is free. Slots for which other gateways would have to give way as well are not among them.
 */
export function sequencesToPreempt<S extends PlacedSequence>(
  tenant: string,
  wanted: number,
  holders: SlotHolders<S>,
  decoders: readonly FreeSlots[],
  standing: Standing,
): Exchange<S> {
  const victims: S[] = [];
  let slots = 0;
  for (const way of waysFor(tenant, holders, decoders, standing)) {
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
  holders: SlotHolders<S>,
  decoders: readonly FreeSlots[],
  standing: Standing,
): readonly S[] {
  const victims: S[] = [];
  let slots = 0;
  for (const way of waysFor(tenant, holders, decoders, standing)) {
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
  holders: SlotHolders<S>,
  decoders: readonly FreeSlots[],
  standing: Standing,
): Generator<Way<S>> {
  const holdings = new Holdings(holders, standing);
  // The usual case, which would otherwise be found worker by worker.
  if (!holdings.mayGain(tenant)) return;
  const free = new Map(decoders.map(({ address, freeSlots }) => [address, freeSlots]));
  const effort = ({ short, victims, elsewhere }: Way<S>) => (short ? 1e9 : 0) + victims.length + elsewhere;
  while (!holdings.wouldOvertake(tenant)) {
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
  { counts }: SlotHolders<PlacedSequence>,
  { weightOf, servedOf }: Standing,
): boolean {
  const own = (counts.get(tenant) ?? 0) / weightOf(tenant);
  const served = servedOf(tenant) + LARGEST_LEAD;
  return [...others].some((other) => {
    return other !== tenant && ((counts.get(other) ?? 0) + 1) / weightOf(other) <= own && servedOf(other) <= served;
  });
}

/** How one slot of a worker is made free. */
interface Way<S> {
  readonly address: string;
  /** Sequences of ours that go. */
  readonly victims: readonly S[];
  /** How many of other gateways go. */
  readonly elsewhere: number;
  /** What may still go after that, of ours and of other gateways. */
  readonly left: { readonly own: readonly S[]; readonly others: readonly HeldElsewhere[] };
  /** Sequences that each tenant loses. */
  readonly lost: ReadonlyMap<string, number>;
  /** The rule allows no more, and the slot is not free yet. */
  readonly short: boolean;
}

/** What is left of all sequences after one exchange or more. */
class Holdings<S extends PlacedSequence> {
  readonly #standing: Standing;
  readonly #counts: Map<string, number>;
  readonly #own: Map<string, readonly S[]>;
  readonly #others: Map<string, readonly HeldElsewhere[]>;
  /** Tenants that have lost a sequence. */
  readonly #losers = new Set<string>();

  constructor({ counts, movable, movableElsewhere }: SlotHolders<S>, standing: Standing) {
    this.#standing = standing;
    this.#counts = new Map(counts);
    this.#own = new Map(movable);
    this.#others = new Map(movableElsewhere);
  }

  /** Whether the rule lets any tenant lose a sequence to this one. */
  mayGain(tenant: string): boolean {
    const holders = [...this.#counts.keys()].map((other) => ({ tenant: other }));
    return this.#loser(tenant, holders, new Map()) !== undefined;
  }

  /** Whether one sequence more would give a tenant more for its weight than is left to one that has lost some to it. */
  wouldOvertake(tenant: string): boolean {
    const heldBy = (name: string, more = 0) => ((this.#counts.get(name) ?? 0) + more) / this.#standing.weightOf(name);
    return [...this.#losers].some((loser) => heldBy(loser) < heldBy(tenant, 1));
  }

  /** The sequences of one worker that go, `count` if the rule allows as many, so that `tenant` gets one more. */
  makeWay(tenant: string, address: string, count: number): Way<S> {
    let own = this.#own.get(address) ?? [];
    let others = this.#others.get(address) ?? [];
    const lost = new Map<string, number>();
    const victims: S[] = [];
    let elsewhere = 0;
    let short = false;
    while (victims.length + elsewhere < count) {
      const loser = this.#loser(tenant, [...others, ...own], lost);
      if (loser === undefined) {
        short = true;
        break;
      }
      lost.set(loser, (lost.get(loser) ?? 0) + 1);
      const victim = own.findLast((each) => each.tenant === loser);
      const other = victimElsewhere(loser, own, others);
      if (victim && !other?.before) {
        victims.push(victim);
        own = own.filter((each) => each !== victim);
      } else {
        elsewhere++;
        const less = others.map((each) => (each === other?.from ? { ...each, movable: each.movable - 1 } : each));
        others = less.filter(({ movable }) => movable > 0);
      }
    }
    return { address, victims, elsewhere, left: { own, others }, lost, short };
  }

  /**
   * The tenant with the most for its weight that may lose one of these sequences to `tenant`.
   * @param lost sequences that tenants have lost already, for this slot.
   */
  #loser(tenant: string, sequences: readonly { tenant: string }[], lost: ReadonlyMap<string, number>) {
    const { weightOf, servedOf } = this.#standing;
    const limit = ((this.#counts.get(tenant) ?? 0) + 1) / weightOf(tenant);
    const served = servedOf(tenant) - LARGEST_LEAD;
    let loser: string | undefined;
    let most = -Infinity;
    for (const { tenant: other } of sequences) {
      if (other === tenant || other === loser) continue;
      const [count, weight] = [(this.#counts.get(other) ?? 0) - (lost.get(other) ?? 0), weightOf(other)];
      if ((count - 1) / weight < limit || servedOf(other) < served) continue;
      // On ties the name decides, since the lists of two gateways have other orders.
      if (count / weight < most || (count / weight === most && loser !== undefined && other < loser)) continue;
      loser = other;
      most = count / weight;
    }
    return loser;
  }

  /** The victims are gone, and `tenant` has one sequence more. */
  exchange({ address, left, lost }: Way<S>, tenant: string): void {
    this.#own.set(address, left.own);
    this.#others.set(address, left.others);
    for (const [loser, count] of lost) {
      this.#counts.set(loser, (this.#counts.get(loser) ?? 0) - count);
      this.#losers.add(loser);
    }
    this.#counts.set(tenant, (this.#counts.get(tenant) ?? 0) + 1);
  }
}

/**
 * The gateway other than this one that has the most of a tenant's sequences on a worker that may go, and whether it
 * gives way before this one; undefined where there is none. Both lists have only sequences that may go: otherwise each
 * of two gateways could take the other's oldest for the one that goes, and wait for it.
 */
function victimElsewhere(
  tenant: string,
  own: readonly PlacedSequence[],
  others: readonly HeldElsewhere[],
): { from: HeldElsewhere; before: boolean } | undefined {
  let from: HeldElsewhere | undefined;
  for (const each of others) {
    if (each.tenant === tenant && (from === undefined || each.movable > from.movable)) from = each;
  }
  if (from === undefined) return undefined;
  const count = own.filter((each) => each.tenant === tenant).length;
  return { from, before: from.movable > count || (from.movable === count && from.first) };
}
