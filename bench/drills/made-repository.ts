/** Repositories whose chunks are made up and written into the store directly, which spares their encoding. */
import { createHash } from 'node:crypto';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Chunk } from '../../services/lib/rag/chunk.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { packIds } from '../../services/lib/rag/store/row.ts';
import type { IndexHead } from '../../services/lib/rag/store/store.ts';

interface Made {
  /** The key of the repository in the store. */
  readonly key: string;
  /** Those that have no id, path and lines get some, and an id that is not their hash. */
  readonly chunks: readonly (Pick<Chunk, 'text' | 'tokens'> & Partial<Chunk>)[];
}

const LOCK_MS = 30_000;
/** Rows of one transaction; one that is too large would keep Redis from answering others. */
const BATCH_BYTES = 4 << 20;
const LINES = 10;

/**
 * Publishes repositories in the form of an index that exists. Their vectors are zero.
 * @param like key of the repository with that index.
 * @returns its head, and the ids of the chunks of each repository.
 * @throws ServingError store_unavailable.
 */
export async function publishMade(
  url: string,
  like: string,
  repositories: Iterable<Made>,
): Promise<{ head: IndexHead; ids: string[][] }> {
  const store = await openStore(url, 'indexing');
  try {
    const head = await store.head(like);
    if (!head) throw new ServingError('repo_not_found', `there is no index of ${like} to take the form from`);
    const ids: string[][] = [];
    for (const { key, chunks } of repositories) {
      const rows = chunks.map((chunk, i) => ({
        chunk: {
          id: sha256(`${key}/${i}`),
          path: `f${i >> 4}.py`,
          startLine: i * LINES + 1,
          endLine: (i + 1) * LINES,
          ...chunk,
        },
        vector: new Float32Array(head.hidden),
      }));
      const own = rows.map(({ chunk }) => chunk.id);
      const writer = await store.lock(key, LOCK_MS);
      try {
        const batch = Math.max(1, Math.floor(BATCH_BYTES / bytesOf(rows[0]!.chunk)));
        for (let i = 0; i < rows.length; i += batch) await writer.put(head.fingerprint, rows.slice(i, i + batch));
        const version = sha256(key).slice(0, 16);
        await writer.publish({ head: { ...head, version, chunks: rows.length }, ids: packIds(own) });
      } finally {
        await writer.release();
      }
      ids.push(own);
    }
    return { head, ids };
  } finally {
    await store.close();
  }
}

/** Size of a chunk, roughly. */
const bytesOf = ({ text, tokens }: Pick<Chunk, 'text' | 'tokens'>) => text.length + tokens.join(' ').length + 512;

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');
