/**
 * `bench index` measures how fast an encoder turns chunks into vectors, by its weights, by the way chunks are batched
 * and by the number of workers; and how long a whole run of `llavacode index` takes, and one that finds nothing
 * changed.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { treeSources } from '../../services/indexer/sources.ts';
import type { Manifest } from '../../services/lib/model/bundle/bundle.ts';
import { weightFormats } from '../../services/lib/model/bundle/weight-formats.ts';
import { chunkFile } from '../../services/lib/rag/chunk.ts';
import type { EncoderInput } from '../../services/lib/rag/encode/encoder-input.ts';
import { INDEXING_SETTINGS } from '../../services/lib/rag/settings.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { type IndexTarget, reportedIndex } from '../system/cli.ts';
import type { BenchModel } from '../system/model.ts';
import type { IndexBenchOptions } from './command.ts';
import { encodeOnce } from './encoder-worker.ts';
import { BATCHINGS, type EncoderCell, type EncoderIdentity, type EncoderResult, type IndexingRun } from './result.ts';

/** How a bundle stores the weights of its encoder. */
export function encoderWeights({ precision }: Pick<Manifest, 'precision'>): string {
  const { encoder } = weightFormats(precision, 1);
  return encoder === 'fp32' ? encoder : `int${encoder.bits}`;
}

const encoderOf = ({ manifest: { context, tokenizer } }: Pick<BenchModel, 'manifest'>): EncoderIdentity => ({
  name: context?.encoder.name,
  layers: context?.encoder.layers,
  // Only a model with random weights borrows its tokenizer.
  randomWeights: tokenizer.of !== undefined,
});

/**
 * The rows of the table. The first one is what the indexer does with the bundles that other benches use; every other
 * row differs from it in its weights or workers, or in its batching.
 * @param weights those that bundles are there for; the first are those of the first row.
 */
function cellsOf(weights: readonly string[], cores: number): EncoderCell[] {
  const workers = [{ workers: 1, threads: cores }, ...(cores > 1 ? [{ workers: cores, threads: 1 }] : [])];
  const [byLength, ...others] = BATCHINGS;
  return weights.flatMap((of, i) => [
    ...workers.map((split) => ({ weights: of, batching: byLength, ...split })),
    ...(i === 0 ? others.map((batching) => ({ weights: of, batching, ...workers[0]! })) : []),
  ]);
}

/**
 * Every round measures each row once, in a seeded random order, so that disturbances by other programs fall on all rows
 * alike.
 * @param bundles one model with different weights of its encoder.
 */
export async function measureEncoder(
  bundles: readonly BenchModel[],
  { path, cores, chunks: count, rounds, seed }: IndexBenchOptions,
  onProgress: (text: string) => void,
): Promise<EncoderResult> {
  const byWeights = new Map(bundles.map((model) => [encoderWeights(model.manifest), model]));
  const all = await chunksOf(path);
  const chunks = spread(all, count);
  const measured = cellsOf([...byWeights.keys()], cores.length).map((cell) => ({
    ...cell,
    seconds: [] as number[],
    cpuSeconds: [] as number[],
  }));
  const random = new RandomStream(seed);
  let tokens = 0;
  for (let round = 1; round <= rounds; round++) {
    for (const cell of random.shuffled(measured)) {
      const { weights, batching, workers } = cell;
      onProgress(`round ${round} of ${rounds}: ${weights}, ${batching}, workers: ${workers}`);
      const done = await encodeOnce(byWeights.get(weights)!.bundle, cell, chunks, cores);
      cell.seconds.push(done.seconds);
      cell.cpuSeconds.push(done.cpuSeconds);
      tokens = done.tokens;
    }
  }
  const [first] = bundles as [BenchModel, ...BenchModel[]];
  return {
    model: first.name,
    encoder: encoderOf(first),
    chunks: chunks.length,
    tokens,
    repositoryChunks: all.length,
    cells: measured,
  };
}

/** The chunks that the indexer makes of a repository. */
async function chunksOf(path: string): Promise<EncoderInput[]> {
  const { chunkLines, chunkStride, maxFileBytes } = INDEXING_SETTINGS;
  const chunking = { chunkLines: chunkLines.parse(undefined), chunkStride: chunkStride.parse(undefined) };
  const sources = await treeSources(path, { maxFileBytes: maxFileBytes.parse(undefined) });
  const chunks: EncoderInput[] = [];
  for (const file of sources.paths) {
    const source = await sources.read(file);
    if (!('text' in source)) continue;
    for (const { path, text } of chunkFile(file, source.text, chunking)) chunks.push({ path, text });
  }
  return chunks;
}

/** So many of the items, at equal distances. */
function spread<T>(items: readonly T[], count: number): T[] {
  const taken = Math.min(count, items.length);
  return Array.from({ length: taken }, (_, i) => items[Math.floor((i * items.length) / taken)]!);
}

/**
 * Indexes twice into a store that is empty at first. The seconds are those of the run itself, without loading the
 * encoder.
 * @param data folder for the store.
 */
export async function measureRuns(
  model: BenchModel,
  { repo, path }: Pick<IndexTarget, 'repo' | 'path'>,
  data: string,
  threads: number,
): Promise<IndexingRun[]> {
  const scratch = await mkdtemp(join(data, 'index-'));
  try {
    const command = { bundle: model.bundle, store: `lmdb:${join(scratch, 'store')}`, repo, path };
    const runs: IndexingRun[] = [];
    for (const run of ['first', 'again'] as const) {
      const { chunks, embedded, seconds } = await reportedIndex(command, threads, join(scratch, 'report.json'));
      runs.push({ model: model.name, encoder: encoderOf(model), run, chunks, embedded, seconds });
    }
    return runs;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}
