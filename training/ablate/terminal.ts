/** An ablation on the terminal: which table, its progress on stderr, and the table on stdout. */
import { join } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import { writeWhole } from '../run/files.ts';
import { onTerminal } from '../run/on-terminal.ts';
import { type AblationOptions, ablate } from './ablate.ts';
import { encoderRows, LOSS_ROWS, pretrainingRows, type Row, readRows, type Schemes } from './rows.ts';
import { tableOf } from './table.ts';

/**
 * @param json file for the figures
 * @throws as {@link ablate}.
 */
export async function runAblate(
  rows: readonly Row[],
  options: AblationOptions,
  json: string | undefined,
): Promise<void> {
  const { to } = options;
  await onTerminal('reading the data sets', { to, json }, async (progress, signal) => {
    const results = await ablate(rows, options, progress, signal);
    const text = tableOf(results);
    await writeWhole(join(to, 'table.txt'), text);
    progress.succeed(`${join(to, 'results.json')}: ${rows.length} rows`);
    process.stdout.write(text);
    return results;
  });
}

/**
 * @param table `table1`, `table3`, `pretraining`, or a file of rows
 * @param encoders folders; one at most but for `table3`
 * @param schemes how rows are pretrained that are
 * @throws ServingError config_invalid, checkpoint_invalid, path_unusable.
 */
export async function rowsOf(
  table: string,
  { llm, encoderChoices }: Pick<AblationOptions, 'llm' | 'encoderChoices'>,
  encoders: readonly string[],
  schemes: Schemes,
): Promise<readonly Row[]> {
  if (table === 'table3') return encoderRows(encoders, llm, encoderChoices);
  if (encoders.length > 1) {
    const why = `--encoder ${encoders.join(' ')} names ${encoders.length} folders, and ${table} takes one`;
    throw new ServingError('config_invalid', `${why}: compare encoders by table3, or by rows of a file`);
  }
  if (table === 'pretraining') return pretrainingRows(schemes);
  return table === 'table1' ? LOSS_ROWS : readRows(table, schemes);
}
