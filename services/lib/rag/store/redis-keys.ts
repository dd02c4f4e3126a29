/**
 * The keys of the index in Redis. All keys of one repository have the same hash tag and so lie in one cluster slot.
 * REPO is `name`, or `tenant:name` (see `repoKey`).
 *
 *   llavacode:1:{REPO}:index         hash: head → JSON, ids → packed ids of chunks and files (32 bytes each).
 *                                    Replaced by one HSET. left-out → files that were not indexed
 *   llavacode:1:{REPO}:chunks        hash: chunk id → path, lines, tokens
 *   llavacode:1:{REPO}:rows:FP       hash: chunk id → vectors, text; FP is a fingerprint
 *   llavacode:1:{REPO}:sums:FP       hash: chunk id → checksum of what lies under it in chunks and in rows:FP
 *   llavacode:1:{REPO}:fingerprints  set of FP
 *   llavacode:1:{REPO}:lock          token of the indexer at work, with a time to live
 *   llavacode:1:repos:{TENANT}       set of the REPOs that a tenant has published
 *
 * The row of a file lies among those of chunks, under an id of its own. Other keys of gateways are in
 * gateway/tenants/tenant-ledger.ts. Of these only the lock expires. A server that evicts drops whole keys. The set of
 * repositories then shows that a published index is gone, and chunks that are gone are missing from their hash: both
 * are reported as errors, never passed over.
 */
import { tenantOf } from './repo-key.ts';

/** Field of the index where the files stand that were not indexed. */
export const LEFT_OUT = 'left-out';

const PREFIX = 'llavacode:1:';

export function keysOf(repo: string) {
  const prefix = `${PREFIX}{${repo}}:`;
  return {
    index: `${prefix}index`,
    chunks: `${prefix}chunks`,
    rows: (fingerprint: string) => `${prefix}rows:${fingerprint}`,
    sums: (fingerprint: string) => `${prefix}sums:${fingerprint}`,
    fingerprints: `${prefix}fingerprints`,
    lock: `${prefix}lock`,
    published: publishedKey(tenantOf(repo)),
  };
}
export type RedisKeys = ReturnType<typeof keysOf>;

export const publishedKey = (tenant: string) => `${PREFIX}repos:{${tenant}}`;
