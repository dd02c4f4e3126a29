/** A run on the terminal: its progress, its end, and what Ctrl-C does. */
import { writeFile } from 'node:fs/promises';
import { interruption } from '../../services/lib/process/interrupt.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { startProgress } from '../../services/lib/process/progress.ts';
import type { TrainOptions } from './settings.ts';
import { train } from './train.ts';

/**
 * Trains with progress on stderr.
 * @param json file for the last figures
 * @throws as {@link train}.
 */
export async function runTrain(options: TrainOptions, json: string | undefined): Promise<void> {
  const progress = startProgress('reading the data set');
  try {
    const report = await train(options, progress, interruption());
    const { validation } = report;
    const figures = validation
      ? `, validation CE ${validation.validCe.toFixed(4)}, mean cosine ${validation.meanCosine.toFixed(3)}`
      : '';
    progress.succeed(
      `${report.projector}: ${report.steps} steps${figures}; serve it with llavacode export --projector`,
    );
    if (validation && validation.meanCosine > COLLAPSED) {
      progress.warn(
        `the projector has collapsed: its soft tokens have a mean cosine of ${validation.meanCosine.toFixed(3)}; raise --alignment, or use --alignment-form frobenius`,
      );
    }
    if (json !== undefined)
      await atPath(`--json ${json}`, () => writeFile(json, `${JSON.stringify(report, null, 2)}\n`));
  } catch (error) {
    progress.fail();
    throw error;
  }
}

/** Above this mean cosine all soft tokens of a prompt say nearly the same. */
const COLLAPSED = 0.98;
