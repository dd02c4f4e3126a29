/**
 * What is known of repositories besides their files: a CSV with the columns `repository`, and `stars`, `licence` or
 * both; and a list of the names of repositories that are left out, one a line.
 */

import { ServingError } from '../../services/lib/process/errors.ts';
import { readSettingFile } from '../../services/lib/process/os-errors.ts';

export interface About {
  readonly stars?: number | undefined;
  /** SPDX identifiers; the repository is under all of them. */
  readonly licences?: readonly string[] | undefined;
}

/** @throws ServingError config_invalid with the file and its line. */
export async function readAbout(path: string | undefined): Promise<ReadonlyMap<string, About>> {
  const known = new Map<string, About>();
  if (path === undefined) return known;
  const [header, ...rows] = parseCsv((await readSettingFile('--about', path)).toString('utf8'));
  const column = (...names: readonly string[]) =>
    header?.cells.findIndex((cell) => names.includes(cell.trim().toLowerCase())) ?? -1;
  const columns = { name: column('repository'), stars: column('stars'), licence: column('licence', 'license') };
  if (columns.name < 0 || (columns.stars < 0 && columns.licence < 0)) {
    const remedy = 'its first line must name the columns repository, and stars or licence';
    throw new ServingError('config_invalid', `--about ${path}: ${remedy}`);
  }
  for (const { line, cells } of rows) {
    const stars = cells[columns.stars]?.trim() ?? '';
    if (!/^\d*$/.test(stars)) {
      throw new ServingError('config_invalid', `--about ${path}:${line}: ${JSON.stringify(stars)} is not a number`);
    }
    const licence = cells[columns.licence]?.trim() ?? '';
    known.set(cells[columns.name]?.trim() ?? '', {
      stars: stars === '' ? undefined : Number(stars),
      licences: licence === '' ? undefined : [licence],
    });
  }
  return known;
}

/** @throws ServingError config_invalid */
export async function readExcluded(path: string | undefined): Promise<ReadonlySet<string>> {
  if (path === undefined) return new Set();
  const lines = (await readSettingFile('--exclude', path)).toString('utf8').split(/\r?\n/);
  return new Set(lines.map((line) => line.trim()).filter((line) => line !== ''));
}

interface CsvRow {
  /** Of its first character, from 1. */
  readonly line: number;
  readonly cells: readonly string[];
}

/** Rows of RFC 4180 without empty ones. A quote that is not closed ends with the text. */
export function parseCsv(text: string): CsvRow[] {
  const rows: CsvRow[] = [];
  let [line, cells, start] = [1, [] as string[], 1];
  const field = /(?:"((?:[^"]|"")*)(?:"|$)|([^,\r\n]*))[^,\r\n]*(,|\r\n|\n|\r|$)/y;
  while (field.lastIndex < text.length || cells.length > 0) {
    const [matched, quoted, plain, end] = field.exec(text)!;
    cells.push(quoted?.replaceAll('""', '"') ?? plain!);
    line += matched.match(/\r\n|\n|\r/g)?.length ?? 0;
    if (end === ',') continue;
    if (cells.length > 1 || cells[0] !== '') rows.push({ line: start, cells });
    [cells, start] = [[], line];
  }
  return rows;
}
