/** Measures how often each retriever finds the chunk that defines what the held-out lines use. */
import { inTurns } from '../../services/lib/async/turns.ts';
import type { Bundle } from '../../services/lib/model/bundle/bundle.ts';
import { type ContextEncoder, loadContextEncoder } from '../../services/lib/rag/encode/encode.ts';
import { RETRIEVERS } from '../../services/lib/rag/retriever-name.ts';
import { DenseIndex, DenseScorer } from '../../services/lib/rag/search/dense.ts';
import { fuse, fusedDepth } from '../../services/lib/rag/search/fused.ts';
import type { InvertedIndex } from '../../services/lib/rag/search/inverted-index.ts';
import { InvertedIndexBuilder } from '../../services/lib/rag/search/inverted-index-builder.ts';
import { searchLexical } from '../../services/lib/rag/search/lexical.ts';
import { type CursorQuery, cursorQuery } from '../../services/lib/rag/search/query.ts';
import { loadQueryEncoder, type QueryEncoder } from '../../services/lib/rag/search/query-encoder.ts';
import { DistinctChunks } from '../../services/lib/rag/search/sameness.ts';
import type { Excludes, Hit } from '../../services/lib/rag/search/top-hits.ts';
import type { Repository } from './corpus.ts';
import { type Question, questionsOf } from './questions.ts';

const TOP_K = 10;
const QUERY_LINES = 10;
const COMPARED = [...RETRIEVERS, 'random'] as const;
type Compared = (typeof COMPARED)[number];

export interface Quality {
  readonly repository: string;
  readonly chunks: number;
  readonly questions: number;
  /** Share of the used identifiers whose definition is among the ten chunks found. */
  readonly recallAt10: Readonly<Record<Compared, number>>;
}

export interface Throughput {
  readonly chunks: number;
  readonly seconds: number;
  readonly chunksPerSecond: number;
}

interface Indexes {
  readonly lexical: InvertedIndex;
  readonly dense: DenseIndex;
  readonly queries: QueryEncoder;
}

/** Measures all repositories, and how fast their chunks are encoded. */
export async function measureQuality(
  repositories: readonly Repository[],
  bundle: Bundle,
  threads: number,
  onProgress: (text: string) => void,
): Promise<{ quality: Quality[]; throughput: Throughput }> {
  const options = { threads } as const;
  const encoder = await loadContextEncoder(bundle, { ...options, retriever: 'dense' });
  const queries = await loadQueryEncoder(bundle, options);
  const scorer = await DenseScorer.load(options);
  const quality: Quality[] = [];
  let [chunks, seconds] = [0, 0];
  try {
    for (const repository of repositories) {
      onProgress(`${repository.name}: encoding ${repository.chunks.length} chunks`);
      const startedAt = performance.now();
      const dense = await denseIndex(repository, encoder, scorer);
      seconds += (performance.now() - startedAt) / 1000;
      chunks += repository.chunks.length;
      quality.push(await measure(repository, { lexical: await lexicalIndex(repository), dense, queries }));
    }
  } finally {
    encoder.dispose();
    queries.dispose();
    scorer.dispose();
  }
  return { quality, throughput: { chunks, seconds, chunksPerSecond: chunks / seconds } };
}

async function denseIndex({ chunks }: Repository, encoder: ContextEncoder, scorer: DenseScorer): Promise<DenseIndex> {
  const encoded = await encoder.encode(chunks);
  const index = new DenseIndex(scorer, chunks.length, encoded[0]?.embedding?.length ?? 1);
  for (const [ordinal, { embedding }] of encoded.entries()) index.set(ordinal, embedding as Float32Array);
  return index;
}

async function lexicalIndex({ chunks }: Repository): Promise<InvertedIndex> {
  const builder = new InvertedIndexBuilder();
  for (const chunk of chunks) builder.add(chunk);
  return inTurns(builder.build());
}

async function measure(repository: Repository, indexes: Indexes): Promise<Quality> {
  const questions = questionsOf(repository);
  const found = Object.fromEntries(COMPARED.map((name) => [name, 0])) as Record<Compared, number>;
  let wanted = 0;
  for (const [i, question] of questions.entries()) {
    wanted += question.answers.length;
    const query = cursorQuery(question.before, question.after, QUERY_LINES);
    const answered = await answer(question, query, indexes, repository.chunks, i);
    for (const name of COMPARED) {
      found[name] += question.answers.filter((chunks) => chunks.some((chunk) => answered[name].includes(chunk))).length;
    }
  }
  const recallAt10 = Object.fromEntries(COMPARED.map((name) => [name, wanted === 0 ? 0 : found[name] / wanted]));
  return {
    repository: repository.name,
    chunks: repository.chunks.length,
    questions: questions.length,
    recallAt10: recallAt10 as Quality['recallAt10'],
  };
}

async function answer(
  { path }: Question,
  query: CursorQuery,
  { lexical, dense, queries }: Indexes,
  chunks: Repository['chunks'],
  seed: number,
): Promise<Record<Compared, number[]>> {
  const excludes = lexical.excluding(path);
  const depth = fusedDepth(TOP_K);
  const rankings = [
    await searchLexical(lexical, 'jaccard', query.tokens, depth, { excludes }),
    await searchLexical(lexical, 'bm25', query.tokens, depth, { excludes }),
    await dense.search(await queries.embed(query.text), depth, { excludes }),
  ];
  // As in retrieval.ts: near-copies take one place.
  const ordinals = (hits: readonly Hit[] = []) => {
    const best = new DistinctChunks<{ readonly ordinal: number; readonly tokens: readonly string[] }>(TOP_K);
    for (const { ordinal } of hits) best.add({ ordinal, tokens: chunks[ordinal]!.tokens });
    return best.kept.map(({ ordinal }) => ordinal);
  };
  return {
    jaccard: ordinals(rankings[0]),
    bm25: ordinals(rankings[1]),
    dense: ordinals(rankings[2]),
    fused: ordinals(fuse(rankings, depth)),
    none: [],
    random: randomChunks(chunks.length, excludes, seed),
  };
}

function randomChunks(chunks: number, excludes: Excludes, seed: number): number[] {
  const drawn = new Set<number>();
  let state = seed + 1;
  for (let tries = 0; tries < 20 * TOP_K && drawn.size < TOP_K; tries++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const chunk = Math.floor((state / 2 ** 32) * chunks);
    if (!excludes(chunk)) drawn.add(chunk);
  }
  return [...drawn];
}
