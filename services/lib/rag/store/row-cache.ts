/**
 * Keeps in memory the rows that completions ask for again and again. A row's key is the hash of its content (and its
 * encoder's fingerprint), and a row never changes, so a cached row is never out of date. The store is still asked each
 * time which rows make up a version.
 */
import { metrics } from '../../process/metrics.ts';
import type { Store } from './store.ts';
import { TenantCache } from './tenant-cache.ts';

/** The most ids in a read that uses the cache. A larger read loads a whole index and would evict everything else. */
const SMALL = 128;
/** Memory that an entry or a content takes besides its key, its text and its vectors: a rough estimate, in bytes. */
const OVERHEAD = 400;

/** @param limitBytes for all rows together, in bytes; each tenant has a share of it. 0 keeps none. */
export function withRowCache(store: Store, limitBytes: number): Store {
  const cache = new TenantCache<object>(limitBytes);

  async function through<T extends object>(
    scope: string,
    ids: readonly string[],
    sizeOf: (value: T) => number,
    read: (missing: readonly string[]) => Promise<(T | undefined)[]>,
  ): Promise<(T | undefined)[]> {
    if (ids.length > SMALL) return read(ids);
    const keyOf = (id: string) => `${scope}\0${id}`;
    const found = new Map<string, T | undefined>(ids.map((id) => [id, cache.get(keyOf(id)) as T | undefined]));
    const missing = ids.filter((id) => found.get(id) === undefined);
    metrics.storeRows.inc({ source: 'cache' }, ids.length - missing.length);
    metrics.storeRows.inc({ source: 'store' }, missing.length);
    if (missing.length > 0) {
      for (const [i, value] of (await read(missing)).entries()) {
        if (value === undefined) continue;
        const id = missing[i]!;
        found.set(id, value);
        cache.set(keyOf(id), value, sizeOf(value) + keyOf(id).length + OVERHEAD);
      }
    }
    return ids.map((id) => found.get(id));
  }

  return {
    address: store.address,
    head: (repo, read) => store.head(repo, read),
    snapshot: (repo) => store.snapshot(repo),
    leftOut: (repo) => store.leftOut(repo),
    repositories: (tenant, which) => store.repositories(tenant, which),
    entries: (repo, ids, limits) =>
      through(
        repo,
        ids,
        ({ path, tokens }) => 2 * path.length + tokens.reduce((sum, token) => sum + 2 * token.length + 16, 0),
        (missing) => store.entries(repo, missing, limits),
      ),
    contents: (repo, fingerprint, ids, limits) =>
      through(
        `${repo}\0${fingerprint}\0${limits?.part ?? ''}`,
        ids,
        ({ text, vector, embedding }) => 2 * text.length + vector.byteLength + (embedding?.byteLength ?? 0),
        (missing) => store.contents(repo, fingerprint, missing, limits),
      ),
    lock: (repo, ttlMs) => store.lock(repo, ttlMs),
    close: () => store.close(),
  };
}
