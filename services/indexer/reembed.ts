/**
 * The making of a side index (see repo-key.ts): all chunks of a repository's index with the vectors of this encoder,
 * from the texts that are stored, so that no source is needed. It is made in pieces: each call encodes a bounded number
 * of chunks, and the next one goes on from what is stored. What is served meanwhile is not touched.
 */
import { createHash } from 'node:crypto';
import type { Paced } from '../lib/async/paced.ts';
import { ServingError } from '../lib/process/errors.ts';
import { chunkOf } from '../lib/rag/chunk.ts';
import type { ContextEncoder } from '../lib/rag/encode/encode.ts';
import { sideKey } from '../lib/rag/store/repo-key.ts';
import { contextFingerprint, idAt, packIds } from '../lib/rag/store/row.ts';
import type { IndexHead, IndexSnapshot, IndexWriter, Store } from '../lib/rag/store/store.ts';

export interface Reembedding {
  /** Key of the repository. */
  readonly repo: string;
  readonly store: Store;
  readonly encoder: ContextEncoder;
  /** Keeps all such work of this process within its share of the time. */
  readonly paced: Paced;
  readonly signal?: AbortSignal | undefined;
}

export interface Reembedded {
  /** Chunks that were encoded by this call, and those that are left to be. */
  readonly embedded: number;
  readonly left: number;
}

/** Chunks of one call, and chunks that it encodes at a time. */
const CALL_CHUNKS = 512;
const BATCH = 64;
/** Chunks that are encoded between two rests: a request that comes meanwhile shares the machine until they are done. */
const PACED_BATCH = 4;
/**
 * Time after which a call that rests begins no further piece, in ms. The piece that has begun, with the rest before it,
 * of a minute at most, is still awaited: the caller must wait for longer than both.
 */
export const PACED_CALL_MS = 60_000;
const LOCK_TTL_MS = 15_000;

/**
 * Brings the side index closer to the repository's own index as it is now, and publishes it when nothing is left. Where
 * the repository's own index has this encoder's vectors, or is gone, also while this runs, a side index is not needed
 * and is removed.
 * @throws ServingError index_locked while another process does the same, store_unavailable, store_invalid; what the
 *   encoder throws; the signal's reason.
 */
export async function reembed(job: Reembedding): Promise<Reembedded> {
  const { repo, store, encoder, paced, signal } = job;
  const untilMs = paced.share >= 1 ? Infinity : paced.now() + PACED_CALL_MS;
  const own = await store.snapshot(repo);
  const wanted = contextFingerprint(encoder.fingerprint);
  const key = sideKey(repo, wanted);
  const before = await store.snapshot(key);
  const isNeeded = own !== undefined && contextFingerprint(own.head.fingerprint) !== wanted;
  if (isNeeded ? before?.head.of === own.head.version : before === undefined) return { embedded: 0, left: 0 };
  const writer = await store.lock(key, LOCK_TTL_MS);
  const isGone = async () => (await store.head(repo)) === undefined;
  let embedded = 0;
  try {
    if (!isNeeded) {
      await writer.remove();
      return { embedded: 0, left: 0 };
    }
    const ids = Array.from({ length: own.head.chunks }, (_, i) => idAt(own.ids, i));
    const missing = await paced.run(async () => {
      const stored = await writer.stored(encoder.fingerprint);
      return [...new Set(ids)].filter((id) => !stored.has(id));
    }, signal);
    const size = paced.share >= 1 ? BATCH : PACED_BATCH;
    const now = missing.slice(0, CALL_CHUNKS);
    for (let start = 0; start < now.length; start += size) {
      signal?.throwIfAborted();
      // One piece is done in any case, so that every call brings the index further.
      if (embedded > 0 && paced.now() >= untilMs) return { embedded, left: missing.length - embedded };
      if (await isGone()) return { embedded, left: 0 };
      const batch = now.slice(start, start + size);
      await paced.run(() => encodeInto(writer, job, own.head, batch), signal);
      embedded += batch.length;
    }
    if (await isGone()) return { embedded, left: 0 };
    if (now.length === missing.length) await paced.run(() => publish(writer, own, encoder, before), signal);
    return { embedded, left: missing.length - embedded };
  } catch (error) {
    signal?.throwIfAborted();
    // Removed after it was last looked for, perhaps in a rest: its chunks are not damaged.
    if (await isGone().catch(() => false)) return { embedded, left: 0 };
    throw error;
  } finally {
    // Who removed the repository could not have this lock.
    if (await isGone().catch(() => false)) await writer.remove().catch(() => {});
    await writer.release().catch(() => {});
  }
}

async function encodeInto(
  writer: IndexWriter,
  { repo, store, encoder, signal }: Reembedding,
  { fingerprint }: IndexHead,
  ids: readonly string[],
): Promise<void> {
  const damaged = { onLeftOut: () => {} };
  const [entries, contents] = await Promise.all([
    store.entries(repo, ids, damaged),
    store.contents(repo, fingerprint, ids, { ...damaged, part: 'text' }),
  ]);
  const chunks = ids.map((id, i) => {
    const [entry, content] = [entries[i], contents[i]];
    const chunk = entry && content && chunkOf(entry, content.text);
    // Only a text that still has its hash may be encoded: damage would become a sound row.
    if (chunk?.id === id) return chunk;
    const message = `chunk ${id} of ${repo} is damaged, or was replaced while it was read: try again, or index anew`;
    throw new ServingError('store_invalid', message);
  });
  const encoded = await encoder.encode(chunks, signal);
  await writer.put(
    encoder.fingerprint,
    chunks.map((chunk, i) => ({ chunk, ...encoded[i]! })),
  );
}

/** Makes the side index of this version the one that readers see. */
async function publish(
  writer: IndexWriter,
  { head, ids }: IndexSnapshot,
  { fingerprint, hidden }: ContextEncoder,
  before: IndexSnapshot | undefined,
): Promise<void> {
  const whole = packIds(Array.from({ length: head.chunks }, (_, i) => idAt(ids, i)));
  const hash = createHash('sha256')
    .update(`${fingerprint}\0${head.retriever ?? ''}\0`)
    .update(whole);
  const version = hash.digest('hex').slice(0, 16);
  await writer.publish({ head: { ...head, version, fingerprint, hidden, of: head.version }, ids: whole });
  await writer.sweep(before);
}
