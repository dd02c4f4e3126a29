/**
 * Prompts that wait for workers, fair between tenants: start-time fair queueing over the cost of sequences, which is
 * weighted round robin for jobs of unequal length. Each turn serves one sequence, so that a prompt with many choices
 * holds up others by the cost of one. Within a tenant the prompt with the lower priority value goes first, then the
 * earlier or, if so ordered, the shorter; all sequences of a prompt go before the next prompt. Pure: no clock, no
 * workers.
 */
import { FairShares, type Party } from '../../lib/async/fair-shares.ts';
import { compareQueued, type Queued, type QueueOrder } from '../../lib/request/queue-order.ts';

export interface Waiting extends Queued {
  readonly tenant: string;
  /** An entry with a lower value goes sooner, among the same tenant's. */
  readonly priority: number;
  /**
   * Prompt tokens that are still to be computed, which are charged with the first sequence. 0 from then on: the other
   * sequences reuse the prompt's KV. Whoever takes a sequence changes it.
   */
  pendingTokens: number;
  /** Sequences that wait. Whoever takes one changes it. */
  sequences: number;
  /** Tokens that the tenant is charged for one sequence: those that it may put out. */
  readonly sequenceCost: number;
  /** It was served before and came back: it goes before others that came at the same time. */
  readonly cameBack: boolean;
}

const costOf = ({ pendingTokens, sequences, sequenceCost }: Waiting) => pendingTokens + sequences * sequenceCost;

interface Tenant<E> extends Party {
  readonly weight: number;
  /** Waiting entries, in order of service. */
  readonly entries: E[];
  /** Sum of the entries' pending tokens. */
  tokens: number;
  /** Sum of the entries' costs. */
  cost: number;
}

/**
 * Most that a tenant is behind because of what it was served elsewhere, in cost / weight: 64 sequences of 2,000 tokens.
 */
const LARGEST_DEBT = 128_000;
/**
 * How much more than another one a tenant may have been served that goes before it all the same, in cost / weight: one
 * sequence of 2,000 tokens. It goes before because it needs no slot, or holds fewer, and yet it uses what the other one
 * needs as well.
 */
export const LARGEST_LEAD = 2_000;

export class FairQueue<E extends Waiting> {
  readonly #weightOf: (tenant: string) => number;
  readonly #order: QueueOrder;
  readonly #tenants: FairShares<Tenant<E>>;
  #tokens = 0;
  #size = 0;

  /**
   * @param weightOf a tenant's share of the service, relative to the others'; above 0.
   * @param order among prompts of the same tenant and priority.
   */
  constructor(weightOf: (tenant: string) => number = () => 1, order: QueueOrder = 'fifo') {
    this.#weightOf = weightOf;
    this.#order = order;
    this.#tenants = new FairShares((name, served) => {
      return { name, served, weight: weightOf(name), entries: [], tokens: 0, cost: 0 };
    });
  }

  /** Pending tokens of all entries. */
  get tokens(): number {
    return this.#tokens;
  }

  get size(): number {
    return this.#size;
  }

  add(entry: E): void {
    const tenant = this.#tenants.of(entry.tenant);
    if (tenant.entries.length === 0) this.#tenants.wakes(tenant);
    tenant.entries.splice(this.#placeOf(tenant.entries, entry), 0, entry);
    this.#count(tenant, entry, 1);
  }

  /** All entries, tenant by tenant. */
  get entries(): E[] {
    return [...this.#tenants.all].flatMap((tenant) => tenant.entries);
  }

  /** The first entry of each tenant, in the order in which the tenants would be served. */
  get firsts(): E[] {
    const waiting = [...this.#tenants.all].filter(({ entries }) => entries.length > 0);
    return waiting.sort((a, b) => a.served - b.served).map(({ entries }) => entries[0]!);
  }

  /** The next entry to be served. */
  get first(): E | undefined {
    return this.#next()?.entries[0];
  }

  /**
   * The entry that would be served next if only those were there that `wanted` holds for; undefined if its tenant has
   * been served {@link LARGEST_LEAD} more than the one that is first in line, for its weight.
   */
  firstOf(wanted: (entry: E) => boolean): E | undefined {
    const tenant = this.#tenants.next(({ entries }) => entries.some(wanted));
    if (tenant === undefined || tenant.served > this.#next()!.served + LARGEST_LEAD) return undefined;
    return tenant.entries.find(wanted);
  }

  /** What a tenant was served, in cost divided by its weight, as it counts if it asks now. */
  servedOf(tenant: string): number {
    return this.#tenants.servedOf(tenant);
  }

  /** Takes one sequence of a waiting entry, usually the first. Returns what its tenant is charged. */
  take(entry: E): number {
    const tenant = this.#tenants.find(entry.tenant);
    const index = tenant?.entries.indexOf(entry) ?? -1;
    if (tenant === undefined || index < 0) return 0;
    const turn = this.#next()!.served;
    const before = costOf(entry);
    this.#countTokens(tenant, -entry.pendingTokens);
    entry.pendingTokens = 0;
    entry.sequences--;
    const charge = before - costOf(entry);
    tenant.cost -= charge;
    if (entry.sequences === 0) {
      tenant.entries.splice(index, 1);
      this.#size--;
    }
    this.#tenants.serve(tenant, charge / tenant.weight, turn);
    this.#forgetIdle();
    return charge;
  }

  /**
   * Charges a tenant for what it was served elsewhere, whether it waits here or not. Its debt has a bound: service that
   * it gets here puts it no further behind.
   */
  charge(name: string, cost: number): void {
    const tenant = this.#tenants.of(name);
    const from = this.#tenants.servedOf(name);
    this.#tenants.raise(tenant, Math.min(from + cost / tenant.weight, this.#tenants.virtualTime + LARGEST_DEBT));
    // While nobody waits nobody falls behind: time goes on for all of them.
    if (this.#size === 0) this.#tenants.passTo(tenant.served);
    this.#forgetIdle();
  }

  /** A tenant was charged for what it was not served: see {@link take}. */
  giveBack(name: string, cost: number): void {
    const tenant = this.#tenants.find(name);
    if (tenant === undefined) return; // time has passed it, and it owes nothing
    this.#tenants.giveBack(tenant, cost / tenant.weight);
    this.#forgetIdle();
  }

  /** Takes out an entry that nobody waits for any more, and charges nobody. Returns false when it was not waiting. */
  remove(entry: E): boolean {
    const tenant = this.#tenants.find(entry.tenant);
    const index = tenant?.entries.lastIndexOf(entry) ?? -1; // victims stand at the end
    if (tenant === undefined || index < 0) return false;
    tenant.entries.splice(index, 1);
    this.#count(tenant, entry, -1);
    return true;
  }

  /** Tokens that would be served before `entry` if it joined the queue and nobody came after it. Changes nothing. */
  ahead(entry: E): number {
    const tenant = this.#tenants.find(entry.tenant);
    const own = tenant?.entries ?? [];
    let [ahead, cost] = [tenant?.tokens ?? 0, tenant?.cost ?? 0];
    // Usually it goes last: walk from the end.
    for (let i = own.length - 1, place = this.#placeOf(own, entry); i >= place; i--) {
      ahead -= own[i]!.pendingTokens;
      cost -= costOf(own[i]!);
    }
    const served = own.length > 0 ? tenant!.served : this.#tenants.servedOf(entry.tenant);
    const turn = served + cost / this.#weightOf(entry.tenant);
    let earlier = true; // on ties the tenant that came first is served
    for (const other of this.#tenants.all) {
      if (other === tenant) earlier = false;
      else ahead += tokensBefore(other, turn, earlier);
    }
    return ahead;
  }

  /**
   * The entries that would have to go so that `entry` fits within `limit` tokens: again and again the last entry of the
   * tenant that holds the most for its weight. undefined when that is `entry` itself. Changes nothing. Entries of which
   * a sequence was served are never among them: their clients have had output.
   */
  victims(entry: E, limit: number): E[] | undefined {
    let tokens = this.#tokens + entry.pendingTokens;
    if (tokens <= limit) return [];
    const holders = [...this.#tenants.all].map(({ name, weight, entries, cost }) => {
      const unserved = entries.filter(({ pendingTokens }) => pendingTokens > 0);
      return { name, weight, entries: unserved, left: unserved.length, cost };
    });
    let holder = holders.find(({ name }) => name === entry.tenant);
    if (!holder) {
      holder = { name: entry.tenant, weight: this.#weightOf(entry.tenant), entries: [], left: 0, cost: 0 };
      holders.push(holder);
    }
    holder.entries.splice(this.#placeOf(holder.entries, entry), 0, entry);
    holder.left++;
    holder.cost += costOf(entry);
    const victims: E[] = [];
    while (tokens > limit) {
      const most = largest(holders);
      const victim = most?.entries[--most.left];
      if (most === undefined || victim === undefined || victim === entry) return undefined;
      victims.push(victim);
      tokens -= victim.pendingTokens;
      most.cost -= costOf(victim);
    }
    return victims;
  }

  /** The index of `entry` among those of its tenant. */
  #placeOf(entries: readonly E[], entry: E): number {
    const order = (other: E) =>
      other.priority - entry.priority ||
      compareQueued(other, entry, this.#order) ||
      other.queuedAtMs - entry.queuedAtMs ||
      Number(entry.cameBack) - Number(other.cameBack);
    return entries.findLastIndex((other) => order(other) <= 0) + 1;
  }

  #next(): Tenant<E> | undefined {
    return this.#tenants.next(({ entries }) => entries.length > 0);
  }

  #count(tenant: Tenant<E>, entry: E, sign: 1 | -1): void {
    this.#countTokens(tenant, sign * entry.pendingTokens);
    tenant.cost += sign * costOf(entry);
    this.#size += sign;
  }

  #countTokens(tenant: Tenant<E>, change: number): void {
    tenant.tokens += change;
    this.#tokens += change;
  }

  #forgetIdle(): void {
    this.#tenants.forget(({ entries }) => entries.length === 0);
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
    before += entry.pendingTokens;
    served += costOf(entry) / weight;
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
