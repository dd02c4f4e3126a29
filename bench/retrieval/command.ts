/** The word after `llavacode bench recall`. What it runs is loaded when it is run. */
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { benchWord, count, counts, typed } from '../options.ts';

export const recallCommand = (): Command =>
  benchWord('recall', 'which retriever brings the chunk that is needed, and what searches and indexes cost by size')
    .option('--llm <dir>', 'checkpoint whose encoder is used', join(PACKAGE_ROOT, 'models', 'tiny-coder'))
    .option('--sizes <list>', 'chunks', counts, [10_000, 100_000, 1_000_000])
    .option('--threads <n>', 'of the encoder', count, availableParallelism())
    .action(async ({ llm, sizes, threads, ...flags }) => {
      const { measureRecall } = await import('./recall.ts');
      const { run } = await import('../harness/run.ts');
      const settings = { llm: llm.replace(`${PACKAGE_ROOT}/`, ''), sizes, threads };
      await run(typed(flags), { bench: 'recall', models: [], settings }, (onProgress) =>
        measureRecall({ llm, sizes, threads }, onProgress),
      );
    });
