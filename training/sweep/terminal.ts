/** A sweep on the terminal: its progress on stderr; its trials and the best settings on stdout. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { interruption } from '../../services/lib/process/interrupt.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { startProgress } from '../../services/lib/process/progress.ts';
import { writeWhole } from '../run/files.ts';
import { type SweepOptions, sweep } from './sweep.ts';
import { tableOf } from './table.ts';

/**
 * @param command the words of `llavacode train` that all trials have
 * @param json file for the figures
 * @throws as {@link sweep}.
 */
export async function runSweep(
  options: SweepOptions,
  command: readonly string[],
  json: string | undefined,
): Promise<void> {
  const progress = startProgress('reading the data sets');
  try {
    const results = await sweep(options, progress, interruption());
    const text = tableOf(results, options, command);
    await writeWhole(join(options.to, 'table.txt'), text);
    progress.succeed(`${join(options.to, 'table.txt')}: ${results.trials.length} trials`);
    process.stdout.write(text);
    if (json !== undefined) {
      await atPath(`--json ${json}`, () => writeFile(json, `${JSON.stringify(results, null, 2)}\n`));
    }
  } catch (error) {
    progress.fail();
    throw error;
  }
}
