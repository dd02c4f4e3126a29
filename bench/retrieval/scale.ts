/** Measures what a search costs and what an index holds per chunk, at sizes up to a million chunks. */
import { inTurns } from '../../services/lib/async/turns.ts';
import { CodedIndex, codedBytes, isCoded } from '../../services/lib/rag/search/coded-index.ts';
import { DenseIndex, DenseScorer, denseBytes } from '../../services/lib/rag/search/dense.ts';
import type { InvertedIndex } from '../../services/lib/rag/search/inverted-index.ts';
import { InvertedIndexBuilder } from '../../services/lib/rag/search/inverted-index-builder.ts';
import { searchLexical } from '../../services/lib/rag/search/lexical.ts';
import { cursorQuery } from '../../services/lib/rag/search/query.ts';
import type { Repository } from './corpus.ts';

const TOP_K = 10;
const QUERY_LINES = 10;
const QUERIES = 200;
/** Number of searches that warm up, and whose times are not counted. */
const WARM_UP = 50;
/** Share of the identifiers that every copy of the sources renames, as another repository would have other names. */
const RENAMED = 0.4;

export interface ScaleRow {
  readonly retriever: string;
  readonly chunks: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly bytesPerChunk: number;
  readonly buildSeconds: number;
}

interface ScaleQuery {
  readonly path: string;
  readonly tokens: readonly string[];
}

/** Lexical rows for each size. Chunks are real; if there are not enough of them, they are repeated with other names. */
export async function measureLexical(source: Repository, sizes: readonly number[]): Promise<ScaleRow[]> {
  const rows: ScaleRow[] = [];
  const asked = queries(source);
  for (const chunks of sizes) {
    const startedAt = performance.now();
    const index = await lexicalIndex(source, chunks);
    const buildSeconds = (performance.now() - startedAt) / 1000;
    for (const retriever of ['jaccard', 'bm25'] as const) {
      const times = await time(asked, async ({ path, tokens }) =>
        searchLexical(index, retriever, tokens, TOP_K, { excludes: index.excluding(path) }),
      );
      rows.push({ retriever, chunks, ...times, bytesPerChunk: index.bytesPerChunk, buildSeconds });
    }
  }
  return rows;
}

/** Dense rows for each size. Embeddings are random, because their values do not change what comparing them costs. */
export async function measureDense(dim: number, sizes: readonly number[]): Promise<ScaleRow[]> {
  const scorer = await DenseScorer.load({ threads: 1 });
  const rows: ScaleRow[] = [];
  for (const chunks of sizes) {
    const startedAt = performance.now();
    const coded = isCoded(chunks, dim);
    const index = coded ? new CodedIndex(chunks, dim) : new DenseIndex(scorer, chunks, dim);
    for (let i = 0; i < chunks; i++) index.set(i, randomVector(dim, i));
    await index.finish();
    const buildSeconds = (performance.now() - startedAt) / 1000;
    const asked = Array.from({ length: QUERIES / 4 }, (_, i) => randomVector(dim, -i));
    const times = await time(asked, (query) => index.search(query, TOP_K));
    rows.push({
      retriever: `dense (${dim})`,
      chunks,
      ...times,
      bytesPerChunk: (coded ? codedBytes : denseBytes)(1, dim),
      buildSeconds,
    });
  }
  scorer.dispose();
  return rows;
}

function queries({ files }: Repository): ScaleQuery[] {
  const long = files
    .map(({ path, text }) => ({ path, lines: text.split('\n') }))
    .filter(({ lines }) => lines.length > 60);
  return Array.from({ length: Math.min(QUERIES, long.length) }, (_, i) => {
    const { path, lines } = long[Math.floor((i * long.length) / QUERIES)]!;
    const at = lines.length >> 1;
    return {
      path,
      tokens: cursorQuery(lines.slice(0, at).join('\n'), lines.slice(at + 3).join('\n'), QUERY_LINES).tokens,
    };
  });
}

async function lexicalIndex({ chunks }: Repository, count: number): Promise<InvertedIndex> {
  const builder = new InvertedIndexBuilder();
  for (let i = 0; i < count; i++) {
    const copy = Math.floor(i / chunks.length);
    const { path, tokens } =
      chunks[count < chunks.length ? Math.floor((i * chunks.length) / count) : i % chunks.length]!;
    builder.add(
      copy === 0 ? { path, tokens } : { path: `${copy}/${path}`, tokens: tokens.map((t) => renamed(t, copy)) },
    );
  }
  return inTurns(builder.build());
}

function renamed(token: string, copy: number): string {
  if (token.length < 5) return token;
  let hash = copy;
  for (let i = 0; i < token.length; i++) hash = (Math.imul(hash, 31) + token.charCodeAt(i)) >>> 0;
  return hash % 100 < 100 * RENAMED ? `${token}_${copy}` : token;
}

function randomVector(dim: number, seed: number): Float32Array {
  let state = Math.imul(seed, 2_654_435_761) >>> 0;
  return Float32Array.from({ length: dim }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32 - 0.5;
  });
}

async function time<Q>(asked: readonly Q[], search: (query: Q) => Promise<unknown>) {
  for (const query of asked.slice(0, WARM_UP)) await search(query);
  const times: number[] = [];
  for (const query of asked) {
    const startedAt = performance.now();
    await search(query);
    times.push(performance.now() - startedAt);
  }
  times.sort((a, b) => a - b);
  const percentile = (share: number) => times[Math.min(times.length - 1, Math.floor(share * times.length))] ?? 0;
  return { p50Ms: percentile(0.5), p99Ms: percentile(0.99) };
}
