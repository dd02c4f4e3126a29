/**
 * Side indexes as those see them whose encoder and projector they are for: a store in which each repository has the
 * index that fits. That is its own where it has these vectors, else the side index, else its own after all, of which
 * text can be used.
 *
 * While an encoder takes the place of another one, both indexes of a repository are served, each to the bundle that
 * made it. A repository whose own index is removed is gone, whatever lies beside it.
 */
import { LRUCache } from 'lru-cache';
import { sideKey } from './repo-key.ts';
import { contextFingerprint } from './row.ts';
import type { IndexHead, IndexSnapshot, Store } from './store.ts';

/** Repositories of which it is remembered where their index lies. For another one it is looked up again. */
const MOST_REMEMBERED = 16_384;

/** @param fingerprint of encoder and projector; undefined where there is none: no vectors are used then. */
export function withSideIndexes(store: Store, fingerprint: string | undefined): Store {
  if (fingerprint === undefined) return store;
  /** Where the index lies that a head or a snapshot was last given of: rows are asked for after it. */
  const places = new LRUCache<string, string>({ max: MOST_REMEMBERED });

  async function fitting<T>(
    repo: string,
    read: (key: string) => Promise<T | undefined>,
    headOf: (found: T) => IndexHead,
  ): Promise<T | undefined> {
    const own = await read(repo);
    const fits = own === undefined || contextFingerprint(headOf(own).fingerprint) === fingerprint;
    const key = sideKey(repo, fingerprint!);
    const side = fits ? undefined : await read(key);
    places.set(repo, side === undefined ? repo : key);
    return side ?? own;
  }
  const placeOf = (repo: string) => places.get(repo) ?? repo;

  return {
    address: store.address,
    head: (repo, read) =>
      fitting(
        repo,
        (key) => store.head(key, read),
        (head) => head,
      ),
    snapshot: (repo) =>
      fitting(
        repo,
        (key) => store.snapshot(key),
        ({ head }: IndexSnapshot) => head,
      ),
    entries: (repo, ids, read) => store.entries(placeOf(repo), ids, read),
    contents: (repo, rows, ids, read) => store.contents(placeOf(repo), rows, ids, read),
    leftOut: (repo) => store.leftOut(repo),
    repositories: (tenant, which) => store.repositories(tenant, which),
    lock: (repo, ttlMs) => store.lock(repo, ttlMs),
    close: () => store.close(),
  };
}
