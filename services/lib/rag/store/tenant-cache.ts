/**
 * A cache of all tenants that is bounded in bytes, and in which no tenant can drop what another one uses. Its share is
 * the limit divided by the number of tenants that have anything in it. Where room is needed, what nobody has used for
 * ten minutes goes first; then what the tenant that holds the most has used least recently. A tenant that holds no more
 * than its share therefore loses nothing to another one, and as long as there is room, every tenant may take it.
 */
import { tenantOf } from './repo-key.ts';

/** Time after which what has not been used is dropped before anything else, in ms: longer than a user reads code. */
const IDLE_MS = 600_000;

interface Entry<V> {
  readonly value: V;
  readonly bytes: number;
  usedMs: number;
}

interface Holding<V> {
  /** The one that was not used for the longest time comes first. */
  readonly entries: Map<string, Entry<V>>;
  bytes: number;
}

export class TenantCache<V> {
  readonly #limitBytes: number;
  readonly #now: () => number;
  readonly #tenants = new Map<string, Holding<V>>();
  #bytes = 0;

  /**
   * @param limitBytes for all entries together.
   * @param now monotonic clock, in ms.
   */
  constructor(limitBytes: number, now: () => number = () => performance.now()) {
    this.#limitBytes = limitBytes;
    this.#now = now;
  }

  /** Bytes of all entries. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Number of entries. */
  get size(): number {
    return [...this.#tenants.values()].reduce((sum, { entries }) => sum + entries.size, 0);
  }

  /** @param key begins with its tenant, as the key of a repository does. */
  get(key: string): V | undefined {
    const entries = this.#tenants.get(tenantOf(key))?.entries;
    const entry = entries?.get(key);
    if (entry === undefined) return undefined;
    entries!.delete(key);
    entries!.set(key, entry);
    entry.usedMs = this.#now();
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
    if (bytes > this.#limitBytes) return;
    const wanted = new Map([[tenant, bytes]]);
    while (this.#bytes + bytes > this.#limitBytes) if (!this.evictFor(tenant, wanted)) return;
    const holding = this.#tenants.get(tenant) ?? { entries: new Map(), bytes: 0 };
    this.#tenants.set(tenant, holding);
    holding.entries.set(key, { value, bytes, usedMs: this.#now() });
    holding.bytes += bytes;
    this.#bytes += bytes;
  }

  delete(key: string): void {
    const tenant = tenantOf(key);
    const holding = this.#tenants.get(tenant);
    const entry = holding?.entries.get(key);
    if (holding === undefined || entry === undefined) return;
    holding.entries.delete(key);
    holding.bytes -= entry.bytes;
    this.#bytes -= entry.bytes;
    if (holding.entries.size === 0) this.#tenants.delete(tenant);
  }

  /**
   * Drops one entry to make room for a tenant.
   * @param wanted bytes that tenants want besides what they have in the cache, this one and others.
   * @param kept key of an entry that is not dropped, because what room is made for belongs to it.
   * @returns whether there was one that may be dropped for it.
   */
  evictFor(tenant: string, wanted: ReadonlyMap<string, number>, kept?: string): boolean {
    const oldest = this.#first((a, b) => a.usedMs < b.usedMs, kept);
    if (oldest === undefined) return false;
    if (this.#now() - oldest.usedMs >= IDLE_MS) {
      this.delete(oldest.key);
      return true;
    }
    const held = ({ tenant, bytes }: Oldest) => bytes + (wanted.get(tenant) ?? 0);
    const most = this.#first((a, b) => held(a) > held(b) || (held(a) === held(b) && a.usedMs < b.usedMs), kept)!;
    const share = this.#limitBytes / new Set([...this.#tenants.keys(), ...wanted.keys()]).size;
    if (most.tenant !== tenant && held(most) <= share) return false;
    this.delete(most.key);
    return true;
  }

  /** Of the entries that their tenants have used least recently, the one that comes before all others. */
  #first(before: (a: Oldest, b: Oldest) => boolean, kept: string | undefined): Oldest | undefined {
    let first: Oldest | undefined;
    for (const [tenant, { entries, bytes }] of this.#tenants) {
      const droppable = firstBut(entries, kept);
      if (droppable === undefined) continue;
      const [key, { usedMs }] = droppable;
      const oldest = { tenant, bytes, key, usedMs };
      if (first === undefined || before(oldest, first)) first = oldest;
    }
    return first;
  }
}

function firstBut<E>(entries: ReadonlyMap<string, E>, kept: string | undefined): [string, E] | undefined {
  for (const entry of entries) if (entry[0] !== kept) return entry;
  return undefined;
}

interface Oldest {
  readonly tenant: string;
  /** Bytes that the tenant holds. */
  readonly bytes: number;
  readonly key: string;
  readonly usedMs: number;
}
