/** Runs `bench training`. */
import { run, type Save } from '../harness/run.ts';
import type { RunOptions } from '../options.ts';
import type { TrainingBenchOptions } from './command.ts';
import { measureTraining } from './measure.ts';
import { TRAINING } from './report.ts';
import type { TrainingResult } from './result.ts';

export async function runTraining(options: TrainingBenchOptions & RunOptions): Promise<void> {
  const end = performance.now() + options.minutes * 60_000;
  const isOver = () => performance.now() > end;
  await run(TRAINING, options, { models: [], settings: options }, (onProgress, save: Save<TrainingResult>) =>
    measureTraining(options, isOver, onProgress, save),
  );
}
