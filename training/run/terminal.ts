/** A run on the terminal. */
import { onTerminal } from './on-terminal.ts';
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
  await onTerminal('reading the data set', { to: options.to, json }, async (progress, signal) => {
    const report = await train(options, progress, signal);
    const { steps, stoppedEarly, bestStep, validation, projector } = report;
    const ended = stoppedEarly ? `; no better one in ${options.patience} validations, so the run ended` : '';
    const figures = validation ? `, ${scoreWords(validation)}, mean cosine ${validation.meanCosine.toFixed(3)}` : '';
    progress.succeed(
      `${projector}: that of step ${bestStep} of ${steps}${figures}${ended}; serve it with llavacode export --projector`,
    );
    const alarm = validation && collapseAlarm(validation);
    if (alarm) progress.warn(alarm);
    return report;
  });
}
