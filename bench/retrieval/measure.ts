/**
 * `bench retrieval` measures top-k latency against the number of chunks, in Redis and embedded, below HTTP. It writes
 * an index of a given size straight into the store, filled with the chunks of the repository again and again under
 * other names, and searches it as the gateway does.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { globby } from 'globby';
import { type Chunk, chunkFile } from '../../services/lib/rag/chunk.ts';
import { createRetrieval } from '../../services/lib/rag/search/retrieval.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { packIds } from '../../services/lib/rag/store/row.ts';
import type { Store } from '../../services/lib/rag/store/store.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { type Percentiles, percentiles } from '../measure/latency.ts';
import type { RetrievalBenchOptions } from './command.ts';

interface RetrievalRun {
  readonly store: string;
  readonly chunks: number;
  /** Duration of the first query, which loads the index. */
  readonly coldMs: number;
  readonly warm: Percentiles;
  readonly samplesMs: readonly number[];
}

export interface RetrievalResult {
  readonly topK: number;
  readonly runs: readonly RetrievalRun[];
  /** Sentences that say which store was not measured, and why. */
  readonly notRun: readonly string[];
}

type QueryOptions = Pick<RetrievalBenchOptions, 'sizes' | 'path' | 'topK' | 'queries' | 'seed'>;

/** Elements of a stored vector: as many as the hidden size of a 1.5B model. */
const HIDDEN = 1536;
const BATCH = 512;
const CHUNKING = { chunkLines: 10, chunkStride: 5 };
const QUERY_LINES = 10;
const FINGERPRINT = 'bench';

/** @param url of the store, which is written to. */
export async function measureRetrieval(url: string, options: QueryOptions): Promise<RetrievalRun[]> {
  const chunks = await chunksOf(options.path);
  const store = await openStore(url);
  try {
    const runs: RetrievalRun[] = [];
    for (const size of options.sizes) {
      const repo = `bench-${size}`;
      await fill(store, repo, grown(chunks, size, options.seed));
      runs.push(await query(store, repo, size, chunks, options));
    }
    return runs;
  } finally {
    await store.close();
  }
}

async function chunksOf(dir: string): Promise<Chunk[]> {
  const paths = (await globby('**/*.py', { cwd: dir })).sort();
  const texts = await Promise.all(paths.map((path) => readFile(join(dir, path), 'utf8')));
  return paths.flatMap((path, i) => chunkFile(path, texts[i]!, CHUNKING));
}

/**
 * Copies of real code in which a third of the identifiers is renamed, because a larger repository has more words, too.
 * Lines differ as well: a search skips chunks that repeat the code around the cursor, and it would skip dozens of equal
 * copies.
 */
function grown(chunks: readonly Chunk[], size: number, seed: number): Chunk[] {
  const random = new RandomStream(seed);
  return Array.from({ length: size }, (_, i) => {
    const copy = Math.floor(i / chunks.length);
    const chunk = chunks[i % chunks.length]!;
    const tokens = chunk.tokens.map((token) => (random.uniform() < 1 / 3 ? `${token}_${copy}` : token));
    const id = createHash('sha256').update(`${copy} ${chunk.id}`).digest('hex');
    const text = copy === 0 ? chunk.text : chunk.text.replaceAll(/$/gm, ` # ${copy}`);
    return { ...chunk, id, path: `copy${String(copy).padStart(6, '0')}/${chunk.path}`, tokens, text };
  });
}

async function fill(store: Store, repo: string, chunks: readonly Chunk[]): Promise<void> {
  const writer = await store.lock(repo, 60_000);
  try {
    const vector = new Float32Array(HIDDEN).fill(0.5);
    for (let start = 0; start < chunks.length; start += BATCH) {
      await writer.put(
        FINGERPRINT,
        chunks.slice(start, start + BATCH).map((chunk) => ({ chunk, vector })),
      );
    }
    const version = createHash('sha256').update(`${repo} ${chunks.length}`).digest('hex').slice(0, 16);
    const head = {
      version,
      fingerprint: FINGERPRINT,
      hidden: HIDDEN,
      files: 1,
      chunks: chunks.length,
      languages: { python: chunks.length },
      indexedAt: new Date().toISOString(),
    };
    await writer.publish({ head, ids: packIds(chunks.map(({ id }) => id)) });
    await writer.sweep();
  } finally {
    await writer.release();
  }
}

async function query(
  store: Store,
  repo: string,
  size: number,
  chunks: readonly Chunk[],
  { topK, queries, seed }: QueryOptions,
): Promise<RetrievalRun> {
  const retrieval = createRetrieval(store, { queryLines: QUERY_LINES });
  const random = new RandomStream(seed + size);
  const signal = AbortSignal.timeout(300_000);
  const once = async () => {
    const before = chunks[random.below(chunks.length)]!.text;
    const startMs = performance.now();
    await retrieval.retrieve({ repo, before, after: '', topK }, signal);
    return performance.now() - startMs;
  };
  const coldMs = await once();
  for (let i = 0; i < 20; i++) await once(); // so that the code is compiled
  const samplesMs: number[] = [];
  for (let i = 0; i < queries; i++) samplesMs.push(await once());
  return { store: store.address.split(':')[0]!, chunks: size, coldMs, warm: percentiles(samplesMs), samplesMs };
}
