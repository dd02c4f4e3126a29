/**
 * `bench recall` measures how often each retriever finds the chunk that is needed, and what a search costs and an index
 * holds at up to a million chunks.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import type { RecallOptions } from './command.ts';
import { everything, repositories } from './corpus.ts';
import { measureQuality, type Quality, type Throughput } from './quality.ts';
import { measureDense, measureLexical, type ScaleRow } from './scale.ts';

export interface RecallResult {
  readonly threads: number;
  readonly quality: readonly Quality[];
  readonly throughput: Throughput;
  readonly scale: readonly ScaleRow[];
}

export async function measureRecall(
  { llm, sizes, threads }: RecallOptions,
  onProgress: (text: string) => void,
): Promise<RecallResult> {
  const work = await mkdtemp(join(tmpdir(), 'llavacode-bench-'));
  try {
    const manifest = await exportBundle({ llm, to: join(work, 'bundle'), precision: 'fp32' });
    const bundle = await openBundle(join(work, 'bundle'));
    const measured = await measureQuality(await repositories(), bundle, threads, onProgress);
    onProgress(`latency at ${sizes.join(', ')} chunks`);
    const dim = manifest.context?.encoder.dim ?? 256;
    const scale = [...(await measureLexical(await everything(), sizes)), ...(await measureDense(dim, sizes))];
    return { threads, ...measured, scale };
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}
