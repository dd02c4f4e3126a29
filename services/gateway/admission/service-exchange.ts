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
 * What a gateway has served to a tenant: the tenant, the cost so far in the life of the gateway, and what it was a
 * second before. Who hears it charges the difference to the higher one of what it has heard before and the last number:
 * so news that are lost are made up for by later ones, those that come late or twice do no harm, and a gateway that has
 * just come, or has heard nothing for long, charges no more than a second.
 */
type Total = readonly [string, number, number];

/** What a gateway has served, which tenants wait there, and its slots. Times are durations: clocks do not compare. */
interface ServiceNews extends SlotNews {
  readonly totals: readonly Total[];
  /** The same for gateways of version 0.1, which know no totals: tenants, and their costs since the last news. */
  readonly served: readonly (readonly [string, number])[];
  readonly waiting: readonly string[];
}

/** What this gateway has served to a tenant. */
interface OwnTotal {
  total: number;
  /** The total at each of the last ticks, the earliest first. */
  readonly before: number[];
  /** The total that the others have been told. */
  told: number;
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
/** Shortest time between two news, in ms. */
const SOONEST_NEWS_MS = 25;
/**
 * Shortest time after which sequences make way where there are other gateways, in ms: then all have had the time to
 * hear for whom.
 */
export const HEARD_WITHIN_MS = 2 * SOONEST_NEWS_MS;
/** News of a gateway that are older than this say nothing about who waits there, in ms. */
const NEWS_LIVE_MS = 4 * NEWS_EVERY_MS;
/**
 * News of a gateway that are older than this say nothing about which tenants hold slots, in ms. Nobody else can say it:
 * a gateway that forgot it after a second took tenants with their share for tenants without any slot, and sequences of
 * others made way for them. With one news in twenty lost that happened every few minutes, and now once in 10^15 ticks.
 */
const HOLDERS_LIVE_MS = 12 * NEWS_EVERY_MS;
/** How long a tenant may be yielded to without being served, in ms: its gateway may have lost the workers. */
export const PATIENCE_MS = 2_000;
/**
 * For so many ticks a total is told again, and that there is nothing any more: for as long as news are worth anything.
 */
const TOLD_TICKS = NEWS_LIVE_MS / NEWS_EVERY_MS;
/** What another gateway has told of a tenant is remembered for so long, in ms: it repeats nothing that is so old. */
const REMEMBERED_MS = 15 * NEWS_LIVE_MS;
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
  /** What was served here in the last ticks, and not long before. */
  readonly #own = new Map<string, OwnTotal>();
  /** The highest total that was forgotten. What comes anew begins there, so that no total goes back. */
  #forgotten = 0;
  /** The highest total of each tenant that other gateways have told, by gateway. */
  readonly #heard = new Map<string, Map<string, { total: number; atMs: number }>>();
  readonly #active = new Map<string, Active>();
  /** What other gateways said last, if somebody waits there, holds slots or finds none. */
  readonly #elsewhere = new Map<string, Heard>();
  /** Cost divided by weight that all gateways served in this interval and in the two before. */
  #recent = [0, 0, 0];
  /** Ticks in which the others are told that there is nothing any more. */
  #emptyTicks = 0;
  #saidAtMs = -Infinity;
  /** News are due that came too soon after the last ones. */
  #sayingSoon = false;

  constructor(options: ServiceExchangeOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** A tenant was served here, or less than was said before: then the cost is below 0. */
  served(tenant: string, cost: number): void {
    const own = this.#own.get(tenant) ?? { total: this.#forgotten, before: [this.#forgotten], told: this.#forgotten };
    this.#own.set(tenant, own);
    own.total += cost;
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
    return this.#live(HOLDERS_LIVE_MS).flatMap(([from, { held }]) => {
      const first = from < this.#options.self;
      return held.map(([tenant, address, sequences, movable]) => ({ tenant, address, sequences, movable, first }));
    });
  }

  /** Sequences that other gateways have placed on a worker a moment ago: a while later it says so itself. */
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
    const costs = news.totals.length > 0 ? this.#costsOf(from, news.totals) : new Map(news.served);
    for (const [tenant, cost] of costs) this.#count(tenant, cost);
    for (const tenant of news.waiting) this.#activate(tenant);
    const { waiting, held, blocked } = news;
    if (waiting.length + held.length + blocked.length > 0)
      this.#elsewhere.set(from, { waiting, held, blocked, atMs: this.#now() });
    else this.#elsewhere.delete(from);
    this.#options.charge(costs);
  }

  /** What of the totals of another gateway has not been heard yet. */
  #costsOf(from: string, totals: readonly Total[]): Map<string, number> {
    const heard = this.#heard.get(from) ?? new Map<string, { total: number; atMs: number }>();
    this.#heard.set(from, heard);
    const costs = new Map<string, number>();
    for (const [tenant, total, before] of totals) {
      const known = heard.get(tenant)?.total ?? 0;
      heard.set(tenant, { total: Math.max(known, total), atMs: this.#now() });
      const cost = total - Math.max(known, before);
      if (cost > 0) costs.set(tenant, cost);
    }
    return costs;
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

  /** @param again tells also what was told before. */
  #say(waiting: readonly string[], again = false): void {
    const untold = [...this.#own].filter(([, { total, told }]) => total !== told);
    const old = again ? [...this.#own].filter(([, { total, told }]) => total === told) : [];
    const toTell = [...untold, ...old].slice(0, MOST_TENANTS);
    const totals = toTell.map(([tenant, { total, before }]): Total => [tenant, total, before[0]!]);
    const fresh = toTell.map(([tenant, { total, told }]) => [tenant, total - told] as const);
    const served = fresh.filter(([, cost]) => cost > 0);
    const slots = this.#options.slots();
    const held = slots.held.slice(0, MOST_TENANTS);
    const blocked = slots.blocked.slice(0, MOST_TENANTS);
    const lasts = waiting.length + held.length + blocked.length > 0;
    if (totals.length > 0 || lasts || this.#emptyTicks > 0) {
      this.#options.publish({ totals, served, waiting, held, blocked });
    }
    for (const [, own] of toTell) own.told = own.total;
    if (lasts) this.#emptyTicks = TOLD_TICKS;
    else if (again && this.#emptyTicks > 0) this.#emptyTicks--;
    this.#saidAtMs = this.#now();
  }

  /** Tells the others what is new, if anything is, and forgets what is old. To be called once per interval. */
  tick(): void {
    const waiting = [...this.#options.waiting()].slice(0, MOST_TENANTS);
    this.#say(waiting, true);
    this.#recent = [0, ...this.#recent.slice(0, 2)];
    const wasYielding = this.#elsewhere.size > 0;
    const nowMs = this.#now();
    this.#forget(nowMs);
    const waits = new Set([...waiting, ...this.#waitingElsewhere()]);
    for (const [tenant, { progressAtMs }] of this.#active) {
      if (!waits.has(tenant) && nowMs - progressAtMs >= NEWS_LIVE_MS) this.#active.delete(tenant);
    }
    for (const tenant of waiting) this.#activate(tenant);
    if (wasYielding) this.#options.charge(new Map()); // patience or news may have run out
  }

  #forget(nowMs: number): void {
    for (const [from, { atMs }] of this.#elsewhere) {
      if (nowMs - atMs >= HOLDERS_LIVE_MS) this.#elsewhere.delete(from);
    }
    for (const [tenant, { total, before, told }] of this.#own) {
      if (total !== told) continue; // there was no room for it
      before.push(total);
      if (before.length <= TOLD_TICKS) continue;
      before.shift();
      if (before[0] !== total) continue;
      this.#own.delete(tenant);
      this.#forgotten = Math.max(this.#forgotten, total);
    }
    for (const [from, heard] of this.#heard) {
      for (const [tenant, { atMs }] of heard) if (nowMs - atMs >= REMEMBERED_MS) heard.delete(tenant);
      if (heard.size === 0) this.#heard.delete(from);
    }
  }

  #live(forMs = NEWS_LIVE_MS): [string, Heard][] {
    const nowMs = this.#now();
    return [...this.#elsewhere].filter(([, { atMs }]) => nowMs - atMs < forMs);
  }

  #waitingElsewhere(): string[] {
    return this.#live().flatMap(([, { waiting }]) => waiting);
  }

  #count(tenant: string, cost: number): void {
    const active = this.#activate(tenant);
    const normalized = cost / this.#options.weightOf(tenant);
    active.served += normalized;
    if (cost <= 0) return;
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

/** @returns undefined for what is not news. Gateways of version 0.1 say nothing of totals and slots. */
function readNews(body: unknown): ServiceNews | undefined {
  const parts = (body ?? {}) as Partial<Record<keyof ServiceNews, unknown>>;
  const { totals = [], served, waiting, held = [], blocked = [] } = parts;
  const isNews =
    isListOf(totals, (each) => isTuple(each, isString, isAmount, isAmount)) &&
    isListOf(served, (pair) => isTuple(pair, isString, isAmount)) &&
    isListOf(waiting, isString) &&
    isListOf(held, (each) => isTuple(each, isString, isString, isCount, isWhole)) &&
    isListOf(blocked, (each) => isTuple(each, isString, isCount, isCount, isAmount));
  return isNews ? ({ totals, served, waiting, held, blocked } as ServiceNews) : undefined;
}
