/**
 * A cache of all tenants that is bounded in bytes, and in which no tenant can drop what another one uses. Its share is
 * the limit divided by the number of tenants that have anything in it. Where room is needed, what nobody has used for
 * ten minutes goes first; then what the tenant that holds the most has used least recently. A tenant that holds no more
 * than its share therefore loses nothing to another one, and as long as there is room, every tenant may take it. What
 * is of use for a while only can be kept for a limited time: then a process that runs for long holds what is of use,
 * not as much as the limit allows.
 */
import { Heap } from './heap.ts';
import { tenantOf } from './repo-key.ts';

/** Time after which what has not been used is dropped before anything else, in ms: longer than a user reads code. */
const IDLE_MS = 600_000;
/** Entries that one addition drops at most because their time is over: more than it adds, and few for one turn. */
const MOST_DROPPED = 4;

interface Entry<V> {
  readonly key: string;
  readonly value: V;
  readonly bytes: number;
  usedMs: number;
  /** Uses of the whole cache before its last one: two may fall into the same ms. */
  use: number;
}

interface Holding<V> {
  readonly tenant: string;
  readonly entries: Map<string, Entry<V>>;
  /** Its entries, the one that was not used for the longest time first. There is always one. */
  readonly byUse: Heap<Entry<V>>;
  bytes: number;
}

/** What a tenant would lose, and what it holds or wants to hold. */
interface Loss<V> {
  readonly tenant: string;
  readonly entry: Entry<V>;
  readonly bytes: number;
}

const usedBefore = (a: Entry<unknown>, b: Entry<unknown>) => a.use < b.use;
const oldestOf = <V>({ byUse }: Holding<V>) => byUse.first()!;
const holdsMore = (a: Loss<unknown>, b: Loss<unknown>) =>
  a.bytes > b.bytes || (a.bytes === b.bytes && usedBefore(a.entry, b.entry));

export class TenantCache<V> {
  readonly #limitBytes: number;
  readonly #now: () => number;
  readonly #keepMs: number;
  readonly #tenants = new Map<string, Holding<V>>();
  /** The tenant whose oldest entry was not used for the longest time comes first. */
  readonly #byUse = new Heap<Holding<V>>((a, b) => usedBefore(oldestOf(a), oldestOf(b)));
  /** The tenant that holds the most comes first. */
  readonly #byBytes = new Heap<Holding<V>>((a, b) => holdsMore(lossOf(a, oldestOf(a)), lossOf(b, oldestOf(b))));
  #bytes = 0;
  #size = 0;
  #uses = 0;

  /**
   * @param limitBytes for all entries together.
   * @param keepMs time without use after which an entry is dropped when others come, whether room is needed or not.
   * @param now monotonic clock, in ms.
   */
  constructor(limitBytes: number, keepMs = Infinity, now: () => number = () => performance.now()) {
    this.#limitBytes = limitBytes;
    this.#keepMs = keepMs;
    this.#now = now;
  }

  /** Bytes of all entries. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Number of entries. */
  get size(): number {
    return this.#size;
  }

  /** @param key begins with its tenant, as the key of a repository does. */
  get(key: string): V | undefined {
    const holding = this.#tenants.get(tenantOf(key));
    const entry = holding?.entries.get(key);
    if (holding === undefined || entry === undefined) return undefined;
    entry.usedMs = this.#now();
    entry.use = this.#uses++;
    holding.byUse.moved(entry);
    this.#moved(holding);
    return entry.value;
  }

  /** The value, without counting as use of it. */
  peek(key: string): V | undefined {
    return this.#tenants.get(tenantOf(key))?.entries.get(key)?.value;
  }

  /** Keeps a value of so many bytes, if there is room or can be made. What lay under the key is gone in any case. */
  set(key: string, value: V, bytes: number): void {
    const tenant = tenantOf(key);
    this.delete(key);
    this.#dropUnused();
    if (bytes > this.#limitBytes) return;
    const wanted = new Map([[tenant, bytes]]);
    while (this.#bytes + bytes > this.#limitBytes) if (!this.evictFor(tenant, wanted)) return;
    const entry = { key, value, bytes, usedMs: this.#now(), use: this.#uses++ };
    const known = this.#tenants.get(tenant);
    const holding: Holding<V> = known ?? {
      tenant,
      entries: new Map(),
      byUse: new Heap<Entry<V>>(usedBefore),
      bytes: 0,
    };
    holding.entries.set(key, entry);
    holding.byUse.add(entry);
    this.#count(holding, entry, 1);
    if (known) this.#moved(holding);
    else {
      this.#tenants.set(tenant, holding);
      this.#byUse.add(holding);
      this.#byBytes.add(holding);
    }
  }

  delete(key: string): void {
    const holding = this.#tenants.get(tenantOf(key));
    const entry = holding?.entries.get(key);
    if (holding === undefined || entry === undefined) return;
    if (holding.entries.size === 1) {
      this.#tenants.delete(holding.tenant);
      this.#byUse.remove(holding);
      this.#byBytes.remove(holding);
    }
    holding.entries.delete(key);
    holding.byUse.remove(entry);
    this.#count(holding, entry, -1);
    if (holding.entries.size > 0) this.#moved(holding);
  }

  /**
   * Drops one entry to make room for a tenant. It takes a time that is logarithmic in the number of tenants and of
   * entries, and linear in the number of tenants that want something: it is called in a turn of the event loop, again
   * and again until there is room.
   * @param wanted bytes that tenants want besides what they have in the cache, this one and others.
   * @param kept key of an entry that is not dropped, because what room is made for belongs to it.
   * @returns whether there was one that may be dropped for it.
   */
  evictFor(tenant: string, wanted: ReadonlyMap<string, number>, kept?: string): boolean {
    const keeper = kept === undefined ? undefined : this.#tenants.get(tenantOf(kept));
    const keptEntry = keeper?.entries.get(kept!);
    const lossIn = (holding: Holding<V> | undefined): Loss<V> | undefined => {
      const entry = holding?.byUse.first(keptEntry);
      return holding && entry && lossOf(holding, entry, wanted.get(holding.tenant));
    };
    // The tenant whose entry is kept may stand too far in front by it.
    const byUse = [this.#byUse.first(keeper), keeper].map(lossIn);
    const oldest = first(byUse, (a, b) => usedBefore(a.entry, b.entry));
    if (oldest === undefined) return false;
    if (this.#now() - oldest.entry.usedMs >= IDLE_MS) {
      this.delete(oldest.entry.key);
      return true;
    }
    let tenants = this.#tenants.size;
    // Of those that want nothing, the first by bytes comes before all others.
    const byBytes = [this.#byBytes.first(keeper), keeper].map(lossIn);
    for (const name of wanted.keys()) {
      const holding = this.#tenants.get(name);
      if (holding) byBytes.push(lossIn(holding));
      else tenants++;
    }
    const most = first(byBytes, holdsMore)!;
    if (most.tenant !== tenant && most.bytes <= this.#limitBytes / tenants) return false;
    this.delete(most.entry.key);
    return true;
  }

  /** Drops some of the entries that were not used for so long that they are of no use. */
  #dropUnused(): void {
    for (let i = 0; i < MOST_DROPPED; i++) {
      const oldest = this.#byUse.first()?.byUse.first();
      if (oldest === undefined || this.#now() - oldest.usedMs < this.#keepMs) return;
      this.delete(oldest.key);
    }
  }

  /** What a tenant holds, or has used least recently, has changed. */
  #moved(holding: Holding<V>): void {
    this.#byUse.moved(holding);
    this.#byBytes.moved(holding);
  }

  #count(holding: Holding<V>, { bytes }: Entry<V>, sign: 1 | -1): void {
    holding.bytes += sign * bytes;
    this.#bytes += sign * bytes;
    this.#size += sign;
  }
}

const lossOf = <V>({ tenant, bytes }: Holding<V>, entry: Entry<V>, wanted = 0): Loss<V> => {
  return { tenant, entry, bytes: bytes + wanted };
};

/** The one of a few that comes before the others. */
function first<T>(all: readonly (T | undefined)[], before: (a: T, b: T) => boolean): T | undefined {
  let first: T | undefined;
  for (const each of all) if (each !== undefined && (first === undefined || before(each, first))) first = each;
  return first;
}
