/** The making of a data set on the terminal. */
import { onTerminal } from '../run/on-terminal.ts';
import { buildDataset } from './build.ts';
import type { DatasetOptions } from './settings.ts';

/**
 * Makes the data set with progress on stderr.
 * @param json file for the manifest, which lies in the data set as well
 * @throws as {@link buildDataset}.
 */
export async function runDataset(options: DatasetOptions, json: string | undefined): Promise<void> {
  const { to, validShare } = options;
  await onTerminal('looking for repositories', { to, json }, async (progress, signal) => {
    const manifest = await buildDataset(options, progress, signal);
    const { train, valid } = manifest.splits;
    progress.succeed(
      `${to}: ${train.samples} samples to train on, ${valid.samples} to validate on; dataset.json says what was left out`,
    );
    if (valid.samples === 0 && validShare > 0) {
      progress.warn('there is nothing to validate on: name more sources, or raise --valid-share');
    }
    return manifest;
  });
}
