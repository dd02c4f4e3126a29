/**
 * Prompts that wait for a worker, fair between tenants: start-time fair queueing over tokens, which is weighted round robin
 * for jobs of unequal length. Within a tenant the lower priority goes first, then the earlier or, if so ordered, the
 * shorter. Pure: no clock, no workers.
 */
import { compareQueued, type Queued, type QueueOrder } from '../lib/request/queue-order.ts';

export interface Waiting extends Queued {
  readonly tenant: string;
  /** Lower goes sooner, among the same tenant's. */
  readonly priority: number;
}

interface Tenant<E> {
  readonly name: string;
  readonly weight: number;
  /** In order of service. */
  readonly entries: E[];
  /** Tokens served so far, divided by the weight; while idle it does not fall behind the others. */
  served: number;
}

export class FairQueue<E extends Waiting> {
  readonly #weightOf: (tenant: string) => number;
  readonly #order: QueueOrder;
  readonly #tenants = new Map<string, Tenant<E>>();
  #tokens = 0;
  #size = 0;
  /** `served` of the tenant that was served last, before it was. */
  #clock = 0;

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
    if (tenant.entries.length === 0) tenant.served = Math.max(tenant.served, this.#clock);
    this.#insert(tenant.entries, entry);
    this.#count(entry, 1);
  }

  /** All that wait, tenant by tenant. */
  get entries(): E[] {
    return [...this.#tenants.values()].flatMap((tenant) => tenant.entries);
  }

  /** The next one to be served. */
  get first(): E | undefined {
    return this.#next()?.entries[0];
  }

  /** Takes the first one out, on its tenant's account. */
  take(): E | undefined {
    const tenant = this.#next();
    const entry = tenant?.entries.shift();
    if (tenant === undefined || entry === undefined) return undefined;
    this.#count(entry, -1);
    this.#clock = tenant.served;
    tenant.served += entry.tokens / tenant.weight;
    this.#forgetIdle();
    return entry;
  }

  /** Takes out one that nobody waits for any more, on nobody's account; false when it was not waiting. */
  remove(entry: E): boolean {
    const tenant = this.#tenants.get(entry.tenant);
    const index = tenant?.entries.indexOf(entry) ?? -1;
    if (tenant === undefined || index < 0) return false;
    tenant.entries.splice(index, 1);
    this.#count(entry, -1);
    return true;
  }

  /** Tokens that would be served before `entry`, did it wait and nobody come after it. Changes nothing. */
  ahead(entry: E): number {
    const tenant = this.#tenants.get(entry.tenant);
    const own = [...(tenant?.entries ?? [])];
    this.#insert(own, entry);
    const before = own.slice(0, own.indexOf(entry)).reduce((sum, { tokens }) => sum + tokens, 0);
    const served = Math.max(tenant?.served ?? 0, tenant?.entries.length ? 0 : this.#clock);
    const turn = served + before / this.#weightOf(entry.tenant);
    let ahead = before;
    let earlier = true; // on ties the one that came first is served
    for (const other of this.#tenants.values()) {
      if (other === tenant) earlier = false;
      let { served } = other;
      for (const { tokens } of other === tenant ? [] : other.entries) {
        if (earlier ? served > turn : served >= turn) break;
        ahead += tokens;
        served += tokens / other.weight;
      }
    }
    return ahead;
  }

  /**
   * Who would have to go so that `entry` fits within `limit` tokens: whoever stands last with the tenant that holds the
   * most for its weight, again and again. undefined when that is `entry` itself. Changes nothing.
   */
  victims(entry: E, limit: number): E[] | undefined {
    const holders = new Map([...this.#tenants.values()].map((each) => [each.name, [...each.entries]]));
    const own = holders.get(entry.tenant) ?? [];
    this.#insert(own, entry);
    holders.set(entry.tenant, own);
    const victims: E[] = [];
    for (let tokens = this.#tokens + entry.tokens; tokens > limit; ) {
      const victim = largest(holders, this.#weightOf).pop();
      if (victim === undefined || victim === entry) return undefined;
      victims.push(victim);
      tokens -= victim.tokens;
    }
    return victims;
  }

  /** Into its place among those of its tenant. */
  #insert(entries: E[], entry: E): void {
    const goesBefore = (other: E) => other.priority - entry.priority || compareQueued(other, entry, this.#order);
    entries.splice(entries.findLastIndex((other) => goesBefore(other) <= 0) + 1, 0, entry);
  }

  #tenant(name: string): Tenant<E> {
    const known = this.#tenants.get(name);
    if (known) return known;
    const fresh = { name, weight: this.#weightOf(name), entries: [], served: this.#clock };
    this.#tenants.set(name, fresh);
    return fresh;
  }

  /** Of those who wait, the tenant that was served least; on ties the one that came first. */
  #next(): Tenant<E> | undefined {
    let least: Tenant<E> | undefined;
    for (const tenant of this.#tenants.values()) {
      if (tenant.entries.length > 0 && (least === undefined || tenant.served < least.served)) least = tenant;
    }
    return least;
  }

  #count({ tokens }: E, sign: 1 | -1): void {
    this.#tokens += sign * tokens;
    this.#size += sign;
  }

  /** Tenants that owe nothing: they would come back as new ones. */
  #forgetIdle(): void {
    for (const [name, tenant] of this.#tenants) {
      if (tenant.entries.length === 0 && tenant.served <= this.#clock) this.#tenants.delete(name);
    }
  }
}

function largest<E extends Waiting>(holders: ReadonlyMap<string, E[]>, weightOf: (tenant: string) => number): E[] {
  let most: E[] = [];
  let share = -1;
  for (const [name, entries] of holders) {
    const own = entries.reduce((sum, { tokens }) => sum + tokens, 0) / weightOf(name);
    if (entries.length > 0 && own >= share) [most, share] = [entries, own];
  }
  return most;
}
