/** A run on the terminal. */
import { collapseAlarm, cosineWords } from './collapse.ts';
import { onTerminal } from './on-terminal.ts';
import { scoreWords } from './run.ts';
import type { TrainOptions } from './settings.ts';
import { train } from './train.ts';

/**
 * Trains with progress on stderr.
 * @param json file for the last figures
 * @throws as {@link train}.
 */
export async function runTrain(options: TrainOptions, json: string | undefined): Promise<void> {
  await onTerminal('reading the data set', { to: options.to, json }, async (progress, signal) => {
    const report = await train(options, progress, signal);
    const { steps, stoppedEarly, bestStep, validation, cosines, projector } = report;
    const ended = stoppedEarly ? `; no better one in ${options.patience} validations, so the run ended` : '';
    const scores = validation ? `, ${scoreWords(validation)}` : '';
    const figures = cosines ? `${scores}, ${cosineWords(cosines)}` : scores;
    progress.succeed(
      `${projector}: that of step ${bestStep} of ${steps}${figures}${ended}; serve it with llavacode export --projector`,
    );
    const alarm = cosines && collapseAlarm(cosines);
    if (alarm) progress.warn(alarm);
    return report;
  });
}
