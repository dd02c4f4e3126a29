/**
 * The rows that completions ask for again and again, in memory. A row lies under the hash of its content (and its
 * encoder's fingerprint) and never changes, so what is here is never out of date; which rows make up a version is asked
 * of the store each time.
 */
import { metrics } from '../../process/metrics.ts';
import type { Store } from './store.ts';

/** Ids of one read that goes through the cache. Larger ones load a whole index, and would push everything else out. */
const SMALL = 128;
/** What a row costs besides its text and vector, about, in bytes. */
const OVERHEAD = 400;

/** @param limitBytes of all rows together. */
export function withRowCache(store: Store, limitBytes: number): Store {
  const cache = new LeastRecentlyUsed(limitBytes);

  async function through<T extends object>(
    scope: string,
    ids: readonly string[],
    sizeOf: (value: T) => number,
    read: (missing: readonly string[]) => Promise<(T | undefined)[]>,
  ): Promise<(T | undefined)[]> {
    if (ids.length > SMALL) return read(ids);
    const found = new Map<string, T | undefined>(ids.map((id) => [id, cache.get(`${scope}\0${id}`) as T | undefined]));
    const missing = ids.filter((id) => found.get(id) === undefined);
    metrics.storeRows.inc({ source: 'cache' }, ids.length - missing.length);
    metrics.storeRows.inc({ source: 'store' }, missing.length);
    if (missing.length > 0) {
      for (const [i, value] of (await read(missing)).entries()) {
        if (value === undefined) continue;
        found.set(missing[i] as string, value);
        cache.set(`${scope}\0${missing[i]}`, value, sizeOf(value) + OVERHEAD);
      }
    }
    return ids.map((id) => found.get(id));
  }

  return {
    address: store.address,
    head: (repo) => store.head(repo),
    snapshot: (repo) => store.snapshot(repo),
    repositories: (tenant) => store.repositories(tenant),
    entries: (repo, ids) =>
      through(
        repo,
        ids,
        ({ path, tokens }) => 2 * path.length + tokens.reduce((sum, token) => sum + 2 * token.length + 16, 0),
        (missing) => store.entries(repo, missing),
      ),
    contents: (repo, fingerprint, ids) =>
      through(
        `${repo}\0${fingerprint}`,
        ids,
        ({ text, vector, embedding }) => 2 * text.length + vector.byteLength + (embedding?.byteLength ?? 0),
        (missing) => store.contents(repo, fingerprint, missing),
      ),
    lock: (repo, ttlMs) => store.lock(repo, ttlMs),
    close: () => store.close(),
  };
}

class LeastRecentlyUsed {
  readonly #limit: number;
  /** In order of use. */
  readonly #entries = new Map<string, { readonly value: object; readonly size: number }>();
  #size = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  get(key: string): object | undefined {
    const entry = this.#entries.get(key);
    if (!entry) return undefined;
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    return entry.value;
  }

  set(key: string, value: object, size: number): void {
    this.#size += size - (this.#entries.get(key)?.size ?? 0);
    this.#entries.delete(key);
    this.#entries.set(key, { value, size });
    for (const [oldest, entry] of this.#entries) {
      if (this.#size <= this.#limit) return;
      this.#entries.delete(oldest);
      this.#size -= entry.size;
    }
  }
}
