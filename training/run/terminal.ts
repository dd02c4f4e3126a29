/** A run on the terminal: its progress, its end, and what Ctrl-C does. */
import { writeFile } from 'node:fs/promises';
import { interruption } from '../../services/lib/process/interrupt.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { startProgress } from '../../services/lib/process/progress.ts';
import { scoreWords } from './run.ts';
import type { TrainOptions } from './settings.ts';
import { train } from './train.ts';
import { collapseAlarm } from './validation.ts';

/**
 * Trains with progress on stderr.
 * @param json file for the last figures
 * @throws as {@link train}.
 */
export async function runTrain(options: TrainOptions, json: string | undefined): Promise<void> {
  const progress = startProgress('reading the data set');
  try {
    const report = await train(options, progress, interruption());
    const { steps, stoppedEarly, bestStep, validation, projector } = report;
    const ended = stoppedEarly ? `; no better one in ${options.patience} validations, so the run ended` : '';
    const figures = validation ? `, ${scoreWords(validation)}, mean cosine ${validation.meanCosine.toFixed(3)}` : '';
    progress.succeed(
      `${projector}: that of step ${bestStep} of ${steps}${figures}${ended}; serve it with llavacode export --projector`,
    );
    const alarm = validation && collapseAlarm(validation);
    if (alarm) progress.warn(alarm);
    if (json !== undefined)
      await atPath(`--json ${json}`, () => writeFile(json, `${JSON.stringify(report, null, 2)}\n`));
  } catch (error) {
    progress.fail();
    throw error;
  }
}
