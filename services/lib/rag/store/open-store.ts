/** Opens the store that a URL names. Only that store's library is loaded. */
import { ServingError } from '../../process/errors.ts';
import type { Logger } from '../../process/log.ts';
import { isRedisUrl } from '../../redis/url.ts';
import { DEFAULT_TENANT } from './repo-key.ts';
import type { Store, StoreLog, StoreUse } from './store.ts';

/**
 * @param url `redis://…` in one of its forms (see redis/url.ts), which is connected to in the background; or
 *   `lmdb:DIR`, whose folder is made if it is missing.
 * @param use what the process does with it: see {@link StoreUse}.
 * @param log told if other users of the machine could read the folder until now.
 * @throws ServingError config_invalid for another URL; store_unavailable if DIR cannot be opened.
 */
export async function openStore(url: string, use: StoreUse = 'serving', log?: StoreLog): Promise<Store> {
  if (isRedisUrl(url)) return (await import('./redis-store.ts')).openRedisStore(url, use);
  if (/^lmdb:./.test(url)) return (await import('./lmdb-store.ts')).openLmdbStore(url.slice('lmdb:'.length), log);
  throw new ServingError('config_invalid', `store ${JSON.stringify(url)} is not redis://…, rediss://… or lmdb:DIR`);
}

/**
 * Says at the start of a service that its store does not answer. The service goes on: a store may come later, and
 * completions go on without context until then.
 */
export async function warnIfAway(store: Store, log: Pick<Logger, 'warn'>): Promise<void> {
  try {
    await store.repositories(DEFAULT_TENANT);
  } catch (err) {
    log.warn({ err, store: store.address }, 'the store does not answer; it is asked again with every request');
  }
}
