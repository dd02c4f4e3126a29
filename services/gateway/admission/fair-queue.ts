/**
 * Prompts that wait for a worker, fair between tenants: start-time fair queueing over the cost of prompts, which is
 * weighted round robin for jobs of unequal length. Within a tenant the prompt with the lower priority value goes first,
 * then the earlier or, if so ordered, the shorter. Pure: no clock, no workers.
 */
import { compareQueued, type Queued, type QueueOrder } from '../../lib/request/queue-order.ts';

export interface Waiting extends Queued {
  readonly tenant: string;
  /** An entry with a lower value goes sooner, among the same tenant's. */
  readonly priority: number;
  /** Tokens that the tenant is charged: the prompt and the output that may follow. */
  readonly cost: number;
}

interface Tenant<E> {
  readonly name: string;
  readonly weight: number;
  /** Waiting entries, in order of service. */
  readonly entries: E[];
  /** Sum of the entries' tokens. */
  tokens: number;
  /** Sum of the entries' costs. */
  cost: number;
  /** Cost served so far, divided by the weight. An idle tenant saves up no credit. */
  served: number;
}

/**
 * Most that a tenant is behind because of what it was served elsewhere, in cost / weight: 64 sequences of 2,000 tokens.
 */
const LARGEST_DEBT = 128_000;

export class FairQueue<E extends Waiting> {
  readonly #weightOf: (tenant: string) => number;
  readonly #order: QueueOrder;
  readonly #tenants = new Map<string, Tenant<E>>();
  #tokens = 0;
  #size = 0;
  /** Virtual time: `served` of the tenant served last, before that service. */
  #virtualTime = 0;

  /**
   * @param weightOf a tenant's share of the service, relative to the others'; above 0.
   * @param order among prompts of the same tenant and priority.
   */
  constructor(weightOf: (tenant: string) => number = () => 1, order: QueueOrder = 'fifo') {
    this.#weightOf = weightOf;
    this.#order = order;
  }

  get tokens(): number {
    return this.#tokens;
  }

  get size(): number {
    return this.#size;
  }

  add(entry: E): void {
    const tenant = this.#tenant(entry.tenant);
    if (tenant.entries.length === 0) tenant.served = Math.max(tenant.served, this.#virtualTime);
    tenant.entries.splice(this.#placeOf(tenant.entries, entry), 0, entry);
    this.#count(tenant, entry, 1);
  }

  /** All entries, tenant by tenant. */
  get entries(): E[] {
    return [...this.#tenants.values()].flatMap((tenant) => tenant.entries);
  }

  /** The next entry to be served. */
  get first(): E | undefined {
    return this.#next()?.entries[0];
  }

  /** Takes the first entry out and charges its tenant. */
  take(): E | undefined {
    const tenant = this.#next();
    const entry = tenant?.entries.shift();
    if (tenant === undefined || entry === undefined) return undefined;
    this.#count(tenant, entry, -1);
    this.#virtualTime = tenant.served;
    tenant.served += entry.cost / tenant.weight;
    this.#forgetIdle();
    return entry;
  }

  /**
   * Charges a tenant for what it was served elsewhere, whether it waits here or not. Its debt has a bound: service that
   * it gets here puts it no further behind.
   */
  charge(name: string, cost: number): void {
    const tenant = this.#tenant(name);
    const from = Math.max(tenant.served, this.#virtualTime);
    tenant.served = Math.max(from, Math.min(from + cost / tenant.weight, this.#virtualTime + LARGEST_DEBT));
    // While nobody waits nobody falls behind: time goes on for all of them.
    if (this.#size === 0) this.#virtualTime = tenant.served;
    this.#forgetIdle();
  }

  /** Takes out an entry that nobody waits for any more, and charges nobody. Returns false when it was not waiting. */
  remove(entry: E): boolean {
    const tenant = this.#tenants.get(entry.tenant);
    const index = tenant?.entries.lastIndexOf(entry) ?? -1; // victims stand at the end
    if (tenant === undefined || index < 0) return false;
    tenant.entries.splice(index, 1);
    this.#count(tenant, entry, -1);
    return true;
  }

  /** Tokens that would be served before `entry` if it joined the queue and nobody came after it. Changes nothing. */
  ahead(entry: E): number {
    const tenant = this.#tenants.get(entry.tenant);
    const own = tenant?.entries ?? [];
    let [ahead, cost] = [tenant?.tokens ?? 0, tenant?.cost ?? 0];
    // Usually it goes last: walk from the end.
    for (let i = own.length - 1, place = this.#placeOf(own, entry); i >= place; i--) {
      ahead -= own[i]!.tokens;
      cost -= own[i]!.cost;
    }
    const served = Math.max(tenant?.served ?? 0, own.length > 0 ? 0 : this.#virtualTime);
    const turn = served + cost / this.#weightOf(entry.tenant);
    let earlier = true; // on ties the tenant that came first is served
    for (const other of this.#tenants.values()) {
      if (other === tenant) earlier = false;
      else ahead += tokensBefore(other, turn, earlier);
    }
    return ahead;
  }

  /**
   * The entries that would have to go so that `entry` fits within `limit` tokens: again and again the last entry of the
   * tenant that holds the most for its weight. undefined when that is `entry` itself. Changes nothing.
   */
  victims(entry: E, limit: number): E[] | undefined {
    let tokens = this.#tokens + entry.tokens;
    if (tokens <= limit) return [];
    const holders = [...this.#tenants.values()].map(({ name, weight, entries, cost }) => {
      const own = name === entry.tenant ? [...entries] : entries;
      return { name, weight, entries: own, left: own.length, cost };
    });
    let holder = holders.find(({ name }) => name === entry.tenant);
    if (!holder) {
      holder = { name: entry.tenant, weight: this.#weightOf(entry.tenant), entries: [], left: 0, cost: 0 };
      holders.push(holder);
    }
    holder.entries.splice(this.#placeOf(holder.entries, entry), 0, entry);
    holder.left++;
    holder.cost += entry.cost;
    const victims: E[] = [];
    while (tokens > limit) {
      const most = largest(holders);
      const victim = most?.entries[--most.left];
      if (most === undefined || victim === undefined || victim === entry) return undefined;
      victims.push(victim);
      tokens -= victim.tokens;
      most.cost -= victim.cost;
    }
    return victims;
  }

  /** The index of `entry` among those of its tenant. */
  #placeOf(entries: readonly E[], entry: E): number {
    const order = (other: E) => other.priority - entry.priority || compareQueued(other, entry, this.#order);
    return entries.findLastIndex((other) => order(other) <= 0) + 1;
  }

  #tenant(name: string): Tenant<E> {
    const known = this.#tenants.get(name);
    if (known) return known;
    const fresh = { name, weight: this.#weightOf(name), entries: [], tokens: 0, cost: 0, served: this.#virtualTime };
    this.#tenants.set(name, fresh);
    return fresh;
  }

  /** The tenant that was served least, among those with waiting entries; on ties the one that came first. */
  #next(): Tenant<E> | undefined {
    let least: Tenant<E> | undefined;
    for (const tenant of this.#tenants.values()) {
      if (tenant.entries.length > 0 && (least === undefined || tenant.served < least.served)) least = tenant;
    }
    return least;
  }

  #count(tenant: Tenant<E>, { tokens, cost }: E, sign: 1 | -1): void {
    tenant.tokens += sign * tokens;
    tenant.cost += sign * cost;
    this.#tokens += sign * tokens;
    this.#size += sign;
  }

  /** Drops idle tenants that a new tenant would equal. */
  #forgetIdle(): void {
    for (const [name, tenant] of this.#tenants) {
      if (tenant.entries.length === 0 && tenant.served <= this.#virtualTime) this.#tenants.delete(name);
    }
  }
}

/** Tokens of a tenant that are served before `turn`. */
function tokensBefore<E extends Waiting>(tenant: Tenant<E>, turn: number, onTies: boolean): number {
  let { served } = tenant;
  const { weight, cost } = tenant;
  if (served + cost / weight < turn) return tenant.tokens;
  let before = 0;
  for (const entry of tenant.entries) {
    if (onTies ? served > turn : served >= turn) break;
    before += entry.tokens;
    served += entry.cost / weight;
  }
  return before;
}

/** The holder with the highest cost for its weight, among those that hold any; on ties the last. */
function largest<H extends { readonly weight: number; readonly left: number; readonly cost: number }>(
  holders: readonly H[],
): H | undefined {
  let most: H | undefined;
  for (const holder of holders) {
    if (holder.left === 0) continue;
    if (most === undefined || holder.cost / holder.weight >= most.cost / most.weight) most = holder;
  }
  return most;
}
