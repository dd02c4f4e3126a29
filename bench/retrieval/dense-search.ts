/**
 * `bench dense` compares the two dense searches: the exact one, and the one by codes of one bit per dimension, which
 * large indexes use. Both get the same queries, in turns.
 */
import { CodedIndex, codedBytes } from '../../services/lib/rag/search/coded-index.ts';
import { DenseIndex, DenseScorer, denseBytes, type EmbeddingIndex } from '../../services/lib/rag/search/dense.ts';
import { median } from '../measure/statistics.ts';
import type { DenseBenchOptions } from './command.ts';

const TOP_K = 10;
/** Searches whose times are not counted, so that the code is compiled. */
const WARM_UP = 5;
/** Embeddings of one cluster: code that is about the same. */
const CLUSTER = 500;

export interface DenseSearch {
  readonly search: 'exact' | 'coded';
  readonly chunks: number;
  readonly dim: number;
  /** Durations of the searches, in ms. */
  readonly ms: readonly number[];
  /** CPU time of the process in each, in ms, the engine's threads included. */
  readonly cpuMs: readonly number[];
  /** Share of the ten best that are found. */
  readonly recall: number;
  readonly bytesPerChunk: number;
  /** CPU time of building the index, in s. */
  readonly buildSeconds: number;
}

export async function measureDenseSearch(
  { sizes, dim, queries, seed }: DenseBenchOptions,
  onProgress: (text: string) => void,
): Promise<DenseSearch[]> {
  const scorer = await DenseScorer.load({ threads: 1 });
  const rows: DenseSearch[] = [];
  for (const chunks of sizes) {
    const embeddings = new MadeEmbeddings(dim, Math.ceil(chunks / CLUSTER), seed);
    onProgress(`${chunks} chunks: building`);
    const exact = await built(new DenseIndex(scorer, chunks, dim), chunks, embeddings);
    const coded = await built(new CodedIndex(chunks, dim), chunks, embeddings);
    onProgress(`${chunks} chunks: searching`);
    const asked = Array.from({ length: WARM_UP + queries }, (_, i) => embeddings.of(-1 - i));
    const times = { exact: [] as Timed[], coded: [] as Timed[] };
    for (const query of asked) {
      times.exact.push(await timed(exact.index, query));
      times.coded.push(await timed(coded.index, query));
    }
    const best = times.exact.map(({ found }) => new Set(found));
    for (const search of ['exact', 'coded'] as const) {
      const counted = times[search].slice(WARM_UP);
      const shares = times[search].map(({ found }, i) => found.filter((one) => best[i]!.has(one)).length / TOP_K);
      rows.push({
        search,
        chunks,
        dim,
        ms: counted.map(({ ms }) => ms),
        cpuMs: counted.map(({ cpuMs }) => cpuMs),
        recall: shares.reduce((sum, share) => sum + share, 0) / shares.length,
        bytesPerChunk: (search === 'exact' ? denseBytes : codedBytes)(chunks, dim) / chunks,
        buildSeconds: (search === 'exact' ? exact : coded).seconds,
      });
    }
  }
  scorer.dispose();
  return rows;
}

/** Median and least of some figures. */
export const middleAndLeast = (figures: readonly number[]) => [median(figures), Math.min(...figures)] as const;

async function built(index: EmbeddingIndex, chunks: number, embeddings: MadeEmbeddings) {
  const made: Float32Array[] = [];
  let seconds = 0;
  for (let i = 0; i < chunks; i++) {
    made.push(embeddings.of(i));
    if (made.length < CLUSTER && i + 1 < chunks) continue;
    const first = i + 1 - made.length;
    const before = process.cpuUsage();
    for (const [j, embedding] of made.entries()) index.set(first + j, embedding);
    seconds += cpuMsSince(before) / 1000;
    made.length = 0;
  }
  const before = process.cpuUsage();
  await index.finish();
  return { index, seconds: seconds + cpuMsSince(before) / 1000 };
}

interface Timed {
  readonly ms: number;
  readonly cpuMs: number;
  readonly found: readonly number[];
}

async function timed(index: EmbeddingIndex, query: Float32Array): Promise<Timed> {
  const before = process.cpuUsage();
  const startedMs = performance.now();
  const hits = await index.search(query, TOP_K);
  const ms = performance.now() - startedMs;
  return { ms, cpuMs: cpuMsSince(before), found: hits.map(({ ordinal }) => ordinal) };
}

function cpuMsSince(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

/** Embeddings as encoders give them: a part that all share, clusters, and dimensions that say less and less. */
class MadeEmbeddings {
  readonly #dim: number;
  readonly #clusters: number;
  readonly #seed: number;
  readonly #spread: Float32Array;

  constructor(dim: number, clusters: number, seed: number) {
    this.#dim = dim;
    this.#clusters = clusters;
    this.#seed = seed;
    this.#spread = Float32Array.from({ length: dim }, (_, i) => 1 / Math.sqrt(1 + i / 8));
  }

  /** @param number of the embedding; the same number has the same one. */
  of(number: number): Float32Array {
    const cluster = Math.abs(Math.imul(number, 2_654_435_761)) % this.#clusters;
    const embedding = new Float32Array(this.#dim);
    this.#add(embedding, 0, 1);
    this.#add(embedding, 1 + cluster, 1);
    this.#add(embedding, 2 ** 24 + number, 0.5);
    return embedding;
  }

  /** Adds a vector that is drawn from a number, times a size. */
  #add(embedding: Float32Array, number: number, size: number): void {
    let state = Math.imul(number + 1, 2_654_435_761) ^ this.#seed;
    for (let i = 0; i < embedding.length; i++) {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
      embedding[i]! += size * this.#spread[i]! * ((state ^ (state >>> 15)) / 2 ** 31);
    }
  }
}
