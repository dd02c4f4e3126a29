/** A sweep on the terminal: its progress on stderr; its trials and the best settings on stdout. */
import { join } from 'node:path';
import { writeWhole } from '../run/files.ts';
import { onTerminal } from '../run/on-terminal.ts';
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
  const { to } = options;
  await onTerminal('reading the data sets', { to, json }, async (progress, signal) => {
    const results = await sweep(options, progress, signal);
    const text = tableOf(results, options, command);
    await writeWhole(join(to, 'table.txt'), text);
    progress.succeed(`${join(to, 'table.txt')}: ${results.trials.length} trials`);
    process.stdout.write(text);
    return results;
  });
}
