/** The making of a data set on the terminal: its progress, its end, and what Ctrl-C does. */
import { writeFile } from 'node:fs/promises';
import { interruption } from '../../services/lib/process/interrupt.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { startProgress } from '../../services/lib/process/progress.ts';
import { buildDataset } from './build.ts';
import type { DatasetOptions } from './settings.ts';

/**
 * Makes the data set with progress on stderr.
 * @param json file for the manifest, which lies in the data set as well
 * @throws as {@link buildDataset}.
 */
export async function runDataset(options: DatasetOptions, json: string | undefined): Promise<void> {
  const progress = startProgress('looking for repositories');
  try {
    const manifest = await buildDataset(options, progress, interruption());
    const { train, valid } = manifest.splits;
    progress.succeed(
      `${options.to}: ${train.samples} samples to train on, ${valid.samples} to validate on; dataset.json says what was left out`,
    );
    if (valid.samples === 0 && options.validShare > 0) {
      progress.warn('there is nothing to validate on: name more sources, or raise --valid-share');
    }
    if (json !== undefined) {
      await atPath(`--json ${json}`, () => writeFile(json, `${JSON.stringify(manifest, null, 2)}\n`));
    }
  } catch (error) {
    progress.fail();
    throw error;
  }
}
