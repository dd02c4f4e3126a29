/**
 * Fairness between tenants over several gateways that share workers. Each gateway tells the others what it has served
 * to whom, in the cost of the fair queue, who waits, and who has which decode slots. The others then
 *
 *   charge    their own queue: a tenant that is served much elsewhere comes later here;
 *   yield     to a tenant that waits elsewhere and has been served less than the one that would be next here, as long
 *             as that tenant is served: without this a gateway could give it no more than the part of the workers that
 *             this one gateway happens to get;
 *   give way  with sequences of their own for a tenant that finds all slots taken elsewhere, and leave it the slots
 *             that come free: the rule is in preemption.ts, and the dispatcher keeps to it.
 *
 * News are up to an interval old. Two gateways might then wait for each other, each because it knows its own services
 * sooner than the other's: so one yields only beyond a slack, which is what all of them served in two intervals. Pure:
 * the caller says what time it is, carries the messages, waits, and calls `tick` once per interval.
 */
import type { HeldElsewhere } from './preemption.ts';

export interface ServiceExchangeOptions {
  readonly weightOf: (tenant: string) => number;
  /** Tells the other gateways. */
  readonly publish: (news: ServiceNews) => void;
  /** Charges the queue of this gateway, and looks whether it goes on. */
  readonly charge: (costs: ReadonlyMap<string, number>) => void;
  /** Tenants that wait in this gateway. */
  readonly waiting: () => ReadonlySet<string>;
  /** What this gateway has placed, and which tenants find no slot. */
  readonly slots: () => SlotNews;
  /** Runs a task in so many ms. */
  readonly after: (ms: number, task: () => void) => void;
  /** Name of this gateway. Of two that hold as many sequences, the one whose name comes first gives way. */
  readonly self: string;
  /** Monotonic clock, in ms. */
  readonly now?: () => number;
}

/**
 * Sequences in decode workers, as a gateway placed them: tenant, address of the worker, how many, and how many of them
 * may make way.
 */
type Held = readonly [string, string, number, number];
/**
 * A tenant that finds all slots taken while others hold more for their weight: its name, how many of its sequences
 * wait, the positions that a slot must hold, and for how long it has been so, in ms.
 */
type Blocked = readonly [string, number, number, number];

export interface SlotNews {
  readonly held: readonly Held[];
  readonly blocked: readonly Blocked[];
}

/**
 * What a gateway served since it last said so, as pairs of tenant and cost, which tenants wait there, and its slots.
 * Times are durations: clocks of two gateways do not compare.
 */
interface ServiceNews extends SlotNews {
  readonly served: readonly (readonly [string, number])[];
  readonly waiting: readonly string[];
}

/** What a gateway said last. */
interface Heard extends SlotNews {
  readonly waiting: readonly string[];
  readonly atMs: number;
}

/** A tenant that finds all slots taken at another gateway. */
export interface BlockedElsewhere {
  readonly gateway: string;
  readonly tenant: string;
  readonly sequences: number;
  readonly positions: number;
  /** How long it has been so, in ms. */
  readonly forMs: number;
}

/** Interval of the news while there are any, in ms. */
export const NEWS_EVERY_MS = 250;
/**
 * Shortest time between two news, in ms. Well below --preempt-after-ms: a gateway that makes way does so when all have
 * had the time to hear for whom.
 */
const SOONEST_NEWS_MS = 25;
/** News of a gateway that are older than this say nothing about who waits there or holds slots, in ms. */
const NEWS_LIVE_MS = 4 * NEWS_EVERY_MS;
/** How long a tenant may be yielded to without being served, in ms: its gateway may have lost the workers. */
export const PATIENCE_MS = 2_000;
/** Entries of each list in one message. */
const MOST_TENANTS = 1_000;

/** A tenant that waits or was served a moment ago, somewhere. */
interface Active {
  /** Cost served to it by all gateways, divided by its weight. A tenant that was idle saves up no credit. */
  served: number;
  /** When it was served last, or began to wait. */
  progressAtMs: number;
}

export class ServiceExchange {
  readonly #options: ServiceExchangeOptions;
  readonly #now: () => number;
  /** What was served here and has not been told. */
  #own = new Map<string, number>();
  readonly #active = new Map<string, Active>();
  /** What other gateways said last, if somebody waits there, holds slots or finds none. */
  readonly #elsewhere = new Map<string, Heard>();
  /** Cost divided by weight that all gateways served in this interval and in the two before. */
  #recent = [0, 0, 0];
  #saidAnything = false;
  #saidAtMs = -Infinity;
  /** News are due that came too soon after the last ones. */
  #sayingSoon = false;

  constructor(options: ServiceExchangeOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** A tenant was served here. */
  served(tenant: string, cost: number): void {
    this.#own.set(tenant, (this.#own.get(tenant) ?? 0) + cost);
    this.#count(tenant, cost);
  }

  /** Whether another tenant, which waits elsewhere, is to be served before this one. */
  yields(tenant: string): boolean {
    if (this.#elsewhere.size === 0) return false;
    const nowMs = this.#now();
    const served = this.#active.get(tenant)?.served ?? this.#least();
    const slack = this.#recent.reduce((sum, cost) => sum + cost, 0);
    return this.#waitingElsewhere().some((other) => {
      const behind = this.#active.get(other);
      return behind !== undefined && behind.served + slack < served && nowMs - behind.progressAtMs < PATIENCE_MS;
    });
  }

  /** Sequences that other gateways have placed. */
  get heldElsewhere(): HeldElsewhere[] {
    return this.#live().flatMap(([from, { held }]) => {
      const first = from < this.#options.self;
      return held.map(([tenant, address, sequences, movable]) => ({ tenant, address, sequences, movable, first }));
    });
  }

  /** Sequences that other gateways have placed on a worker. */
  sequencesElsewhere(address: string): number {
    let sum = 0;
    for (const [, { held }] of this.#live()) for (const each of held) if (each[1] === address) sum += each[2];
    return sum;
  }

  get blockedElsewhere(): BlockedElsewhere[] {
    const nowMs = this.#now();
    return this.#live().flatMap(([gateway, { blocked, atMs }]) => {
      return blocked.map(([tenant, sequences, positions, forMs]) => {
        return { gateway, tenant, sequences, positions, forMs: forMs + nowMs - atMs };
      });
    });
  }

  /** News of another gateway, which are not trusted to have the right form. */
  heard(from: string, body: unknown): void {
    const news = readNews(body);
    if (news === undefined) return;
    for (const [tenant, cost] of news.served) this.#count(tenant, cost);
    for (const tenant of news.waiting) this.#activate(tenant);
    const { waiting, held, blocked } = news;
    if (waiting.length + held.length + blocked.length > 0)
      this.#elsewhere.set(from, { waiting, held, blocked, atMs: this.#now() });
    else this.#elsewhere.delete(from);
    this.#options.charge(new Map(news.served));
  }

  /** A sequence of this gateway has ended: gateways whose tenants find no slot hear of it before the next tick. */
  freed(): void {
    if (this.blockedElsewhere.length > 0) this.#saySoon();
  }

  /**
   * A tenant of this gateway finds all slots taken now: the others hear of it before the next tick, and so before
   * slots come free for it. Otherwise one that has not heard could take them.
   */
  lacksSlots(): void {
    this.#saySoon();
  }

  /** Tells the others now, or as soon as may be after the last news. */
  #saySoon(): void {
    if (this.#sayingSoon) return;
    const leftMs = this.#saidAtMs + SOONEST_NEWS_MS - this.#now();
    const say = () => this.#say([...this.#options.waiting()].slice(0, MOST_TENANTS));
    if (leftMs <= 0) {
      say();
      return;
    }
    this.#sayingSoon = true;
    this.#options.after(leftMs, () => {
      this.#sayingSoon = false;
      say();
    });
  }

  #say(waiting: readonly string[]): void {
    const own = [...this.#own];
    const served = own.slice(0, MOST_TENANTS);
    const slots = this.#options.slots();
    const held = slots.held.slice(0, MOST_TENANTS);
    const blocked = slots.blocked.slice(0, MOST_TENANTS);
    const lasts = waiting.length + held.length + blocked.length > 0;
    if (served.length > 0 || lasts || this.#saidAnything) this.#options.publish({ served, waiting, held, blocked });
    this.#saidAnything = lasts;
    this.#saidAtMs = this.#now();
    this.#own = new Map(own.slice(MOST_TENANTS));
  }

  /** Tells the others what is new, if anything is, and forgets what is old. To be called once per interval. */
  tick(): void {
    const waiting = [...this.#options.waiting()].slice(0, MOST_TENANTS);
    this.#say(waiting);
    this.#recent = [0, ...this.#recent.slice(0, 2)];
    const wasYielding = this.#elsewhere.size > 0;
    const nowMs = this.#now();
    for (const [from, { atMs }] of this.#elsewhere) {
      if (nowMs - atMs >= NEWS_LIVE_MS) this.#elsewhere.delete(from);
    }
    const waits = new Set([...waiting, ...this.#waitingElsewhere()]);
    for (const [tenant, { progressAtMs }] of this.#active) {
      if (!waits.has(tenant) && nowMs - progressAtMs >= NEWS_LIVE_MS) this.#active.delete(tenant);
    }
    for (const tenant of waiting) this.#activate(tenant);
    if (wasYielding) this.#options.charge(new Map()); // patience or news may have run out
  }

  #live(): [string, Heard][] {
    const nowMs = this.#now();
    return [...this.#elsewhere].filter(([, { atMs }]) => nowMs - atMs < NEWS_LIVE_MS);
  }

  #waitingElsewhere(): string[] {
    return this.#live().flatMap(([, { waiting }]) => waiting);
  }

  #count(tenant: string, cost: number): void {
    const active = this.#activate(tenant);
    const normalized = cost / this.#options.weightOf(tenant);
    active.served += normalized;
    active.progressAtMs = this.#now();
    this.#recent[0]! += normalized;
  }

  #activate(tenant: string): Active {
    const known = this.#active.get(tenant);
    if (known !== undefined) return known;
    const active = { served: this.#least(), progressAtMs: this.#now() };
    this.#active.set(tenant, active);
    return active;
  }

  #least(): number {
    let least = Infinity;
    for (const { served } of this.#active.values()) least = Math.min(least, served);
    return Number.isFinite(least) ? least : 0;
  }
}

const isString = (value: unknown) => typeof value === 'string';
const isWhole = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
const isCount = (value: unknown) => isWhole(value) && value !== 0;
const isAmount = (value: unknown) => typeof value === 'number' && value >= 0 && Number.isFinite(value);
const isTuple = (value: unknown, ...parts: readonly ((part: unknown) => boolean)[]) =>
  Array.isArray(value) && value.length === parts.length && parts.every((isPart, i) => isPart(value[i]));
const isListOf = (list: unknown, isEntry: (entry: unknown) => boolean) =>
  Array.isArray(list) && list.length <= MOST_TENANTS && list.every(isEntry);

/** @returns undefined for what is not news. Gateways of version 0.1 say nothing of slots. */
function readNews(body: unknown): ServiceNews | undefined {
  const { served, waiting, held = [], blocked = [] } = (body ?? {}) as Partial<Record<keyof ServiceNews, unknown>>;
  const isNews =
    isListOf(served, (pair) => isTuple(pair, isString, isAmount)) &&
    isListOf(waiting, isString) &&
    isListOf(held, (each) => isTuple(each, isString, isString, isCount, isWhole)) &&
    isListOf(blocked, (each) => isTuple(each, isString, isCount, isCount, isAmount));
  return isNews ? ({ served, waiting, held, blocked } as ServiceNews) : undefined;
}
