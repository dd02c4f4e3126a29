/**
 * Fairness between tenants over several gateways that share workers. Each gateway tells the others what it has served
 * to whom, in the cost of the fair queue, and who waits. The others then
 *
 *   charge    their own queue: a tenant that is served much elsewhere comes later here;
 *   yield     to a tenant that waits elsewhere and has been served less than the one that would be next here, as long
 *             as that tenant is served: without this a gateway could give it no more than the part of the workers that
 *             this one gateway happens to get.
 *
 * News are up to an interval old. Two gateways might then wait for each other, each because it knows its own services
 * sooner than the other's: so one yields only beyond a slack, which is what all of them served in two intervals. Pure:
 * the caller says what time it is, carries the messages, and calls `tick` once per interval.
 */

export interface ServiceExchangeOptions {
  readonly weightOf: (tenant: string) => number;
  /** Tells the other gateways. */
  readonly publish: (news: ServiceNews) => void;
  /** Charges the queue of this gateway, and looks whether it goes on. */
  readonly charge: (costs: ReadonlyMap<string, number>) => void;
  /** Tenants that wait in this gateway. */
  readonly waiting: () => ReadonlySet<string>;
  /** Monotonic clock, in ms. */
  readonly now?: () => number;
}

/** What a gateway served since it last said so, as pairs of tenant and cost, and which tenants wait there. */
interface ServiceNews {
  readonly served: readonly (readonly [string, number])[];
  readonly waiting: readonly string[];
}

/** Interval of the news while there are any, in ms. */
export const NEWS_EVERY_MS = 250;
/** News of a gateway that are older than this say nothing about who waits there, in ms. */
const NEWS_LIVE_MS = 4 * NEWS_EVERY_MS;
/** How long a tenant may be yielded to without being served, in ms: its gateway may have lost the workers. */
const PATIENCE_MS = 2_000;
/** Tenants in one message. */
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
  /** Who waits at other gateways, by gateway. */
  readonly #elsewhere = new Map<string, { readonly waiting: readonly string[]; readonly atMs: number }>();
  /** Cost divided by weight that all gateways served in this interval and in the two before. */
  #recent = [0, 0, 0];
  #saidWaiting = false;

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
    return this.#waitingElsewhere(nowMs).some((other) => {
      const behind = this.#active.get(other);
      return behind !== undefined && behind.served + slack < served && nowMs - behind.progressAtMs < PATIENCE_MS;
    });
  }

  /** News of another gateway, which are not trusted to have the right form. */
  heard(from: string, body: unknown): void {
    const news = readNews(body);
    if (news === undefined) return;
    for (const [tenant, cost] of news.served) this.#count(tenant, cost);
    for (const tenant of news.waiting) this.#activate(tenant);
    if (news.waiting.length > 0) this.#elsewhere.set(from, { waiting: news.waiting, atMs: this.#now() });
    else this.#elsewhere.delete(from);
    this.#options.charge(new Map(news.served));
  }

  /** Tells the others what is new, if anything is, and forgets what is old. */
  tick(): void {
    const waiting = [...this.#options.waiting()].slice(0, MOST_TENANTS);
    const own = [...this.#own];
    const served = own.slice(0, MOST_TENANTS);
    if (served.length > 0 || waiting.length > 0 || this.#saidWaiting) this.#options.publish({ served, waiting });
    this.#saidWaiting = waiting.length > 0;
    this.#own = new Map(own.slice(MOST_TENANTS));
    this.#recent = [0, ...this.#recent.slice(0, 2)];
    const wasYielding = this.#elsewhere.size > 0;
    const nowMs = this.#now();
    for (const [from, { atMs }] of this.#elsewhere) {
      if (nowMs - atMs >= NEWS_LIVE_MS) this.#elsewhere.delete(from);
    }
    const waits = new Set([...waiting, ...this.#waitingElsewhere(nowMs)]);
    for (const [tenant, { progressAtMs }] of this.#active) {
      if (!waits.has(tenant) && nowMs - progressAtMs >= NEWS_LIVE_MS) this.#active.delete(tenant);
    }
    for (const tenant of waiting) this.#activate(tenant);
    if (wasYielding) this.#options.charge(new Map()); // patience or news may have run out
  }

  #waitingElsewhere(nowMs: number): string[] {
    const live = [...this.#elsewhere.values()].filter(({ atMs }) => nowMs - atMs < NEWS_LIVE_MS);
    return live.flatMap(({ waiting }) => waiting);
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

function readNews(body: unknown): ServiceNews | undefined {
  const { served, waiting } = (body ?? {}) as Partial<Record<keyof ServiceNews, unknown>>;
  if (!Array.isArray(served) || !Array.isArray(waiting)) return undefined;
  if (served.length > MOST_TENANTS || waiting.length > MOST_TENANTS) return undefined;
  const isCost = (cost: unknown) => typeof cost === 'number' && cost >= 0 && Number.isFinite(cost);
  if (!served.every((pair) => Array.isArray(pair) && typeof pair[0] === 'string' && isCost(pair[1]))) return undefined;
  return waiting.every((tenant) => typeof tenant === 'string') ? { served, waiting } : undefined;
}
