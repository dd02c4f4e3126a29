/**
 * Repositories of The Stack's parquet files: version 1, also deduplicated, and sets with the same columns under other
 * names. The files of a repository are spread over all parquet files. The names are read first, from their own columns;
 * then the texts of the repositories that are wanted are brought together in spool files, each of which holds some
 * repositories whole and fits into memory. This file is the only importer of hyparquet.
 */
import { appendFile, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type AsyncBuffer,
  asyncBufferFromFile,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
} from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { z } from 'zod';
import { asSource } from '../../services/indexer/selection.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, makeFolder, reasonOf } from '../../services/lib/process/os-errors.ts';
import { writeWhole } from '../run/files.ts';
import type { About } from './about.ts';
import { hash52 } from './random.ts';
import type { Repository } from './repositories.ts';

/** The names that a column may have, the first one first. */
const COLUMNS = {
  repository: ['max_stars_repo_name', 'repo_name', 'repository_name', 'repo'],
  path: ['max_stars_repo_path', 'path', 'file_path'],
  text: ['content', 'code'],
  stars: ['max_stars_count', 'star_events_count', 'stars'],
  licences: ['max_stars_repo_licenses', 'detected_licenses', 'licenses', 'license'],
} as const;
type Column = keyof typeof COLUMNS;

/** Texts of one spool file, in bytes: it lies in memory twice while it is read. */
const SPOOL_BYTES = 64 * 1024 * 1024;
/** Texts that wait in memory for all spool files together, in bytes. */
const WAITING_BYTES = 64 * 1024 * 1024;

/** A repository by its rows, before any text has been read. */
export interface StackRepository {
  readonly name: string;
  readonly about: About;
  /** Its files of the language. */
  readonly files: number;
  /** Bytes of their texts, estimated from the mean of their parquet files. */
  readonly bytes: number;
}

const licences = z
  .union([z.string(), z.array(z.string().nullable())])
  .transform((value) => (typeof value === 'string' ? [value] : value.filter((each) => each !== null)));
const rowSchema = z.object({
  repository: z.string(),
  path: z.string(),
  text: z.string().optional(),
  stars: z.coerce.number().nullish().catch(undefined),
  licences: licences.nullish().catch(undefined),
});
type Row = z.infer<typeof rowSchema>;

class ParquetFile {
  readonly #path: string;
  readonly #file: AsyncBuffer;
  readonly #metadata: FileMetaData;
  readonly #names: ReadonlyMap<Column, string>;

  private constructor(path: string, file: AsyncBuffer, metadata: FileMetaData, names: ReadonlyMap<Column, string>) {
    this.#path = path;
    this.#file = file;
    this.#metadata = metadata;
    this.#names = names;
  }

  /** @throws ServingError path_unusable; sample_invalid for a file that is not parquet, or lacks a column. */
  static async open(path: string): Promise<ParquetFile> {
    return ParquetFile.#reading(path, async () => {
      const file = await asyncBufferFromFile(path);
      const metadata = await parquetMetadataAsync(file);
      const present = new Set(metadata.row_groups[0]?.columns.map((column) => column.meta_data?.path_in_schema[0]));
      const names = new Map<Column, string>();
      for (const [column, known] of Object.entries(COLUMNS) as [Column, readonly string[]][]) {
        const name = known.find((each) => present.has(each));
        if (name !== undefined) names.set(column, name);
        else if (metadata.num_rows > 0n && ['repository', 'path', 'text'].includes(column)) {
          const remedy = `it needs one of ${known.join(', ')}, as The Stack version 1 has (version 2 has no texts)`;
          throw new ServingError('sample_invalid', `${path} has no column for the ${column}: ${remedy}`);
        }
      }
      return new ParquetFile(path, file, metadata, names);
    });
  }

  static async #reading<T>(path: string, task: () => Promise<T>): Promise<T> {
    try {
      return await atPath(path, task);
    } catch (cause) {
      if (cause instanceof ServingError) throw cause;
      throw new ServingError('sample_invalid', `${path} is not a parquet file that can be read: ${reasonOf(cause)}`, {
        cause,
      });
    }
  }

  /** Mean bytes of a text. */
  get meanBytes(): number {
    const name = this.#names.get('text');
    const sizes = this.#metadata.row_groups.flatMap(({ columns }) =>
      columns.flatMap(({ meta_data }) =>
        meta_data?.path_in_schema[0] === name ? [Number(meta_data?.total_uncompressed_size ?? 0)] : [],
      ),
    );
    return sizes.reduce((sum, size) => sum + size, 0) / Math.max(1, Number(this.#metadata.num_rows));
  }

  /** The rows of one group after the other: a group fits into memory, a file may not. */
  async *rows(columns: readonly Column[], signal: AbortSignal): AsyncGenerator<Row[]> {
    const known = columns.flatMap((column) => {
      const name = this.#names.get(column);
      return name === undefined ? [] : [[column, name] as const];
    });
    let start = 0;
    for (const { num_rows } of this.#metadata.row_groups) {
      signal.throwIfAborted();
      const end = start + Number(num_rows);
      const asked = { file: this.#file, metadata: this.#metadata, compressors, rowStart: start, rowEnd: end };
      const read = () => parquetReadObjects({ ...asked, columns: known.map(([, name]) => name) });
      const rows: Record<string, unknown>[] = await ParquetFile.#reading(this.#path, read);
      yield rows.map((row, i) =>
        this.#checked(start + i, Object.fromEntries(known.map(([c, name]) => [c, row[name]]))),
      );
      start = end;
    }
  }

  #checked(index: number, row: Record<string, unknown>): Row {
    const parsed = rowSchema.safeParse(row);
    if (parsed.success) return parsed.data;
    const issue = parsed.error.issues[0];
    throw new ServingError(
      'sample_invalid',
      `${this.#path}: row ${index}: ${issue?.path.join('.')}: ${issue?.message}`,
    );
  }
}

/**
 * The repositories of parquet files that have files of the language.
 * @throws ServingError path_unusable, sample_invalid; the signal's reason.
 */
export async function readStackNames(
  paths: readonly string[],
  covers: (path: string) => boolean,
  onFile: (done: number) => void,
  signal: AbortSignal,
): Promise<StackRepository[]> {
  const found = new Map<string, { name: string; about: About; files: number; bytes: number }>();
  for (const [i, path] of paths.entries()) {
    const file = await ParquetFile.open(path);
    const { meanBytes } = file;
    for await (const rows of file.rows(['repository', 'path', 'stars', 'licences'], signal)) {
      for (const { repository: name, path, stars, licences } of rows) {
        if (!covers(path)) continue;
        const about = { stars: stars ?? undefined, licences: licences ?? undefined };
        const known = found.get(name) ?? { name, about, files: 0, bytes: 0 };
        known.files++;
        known.bytes += meanBytes;
        found.set(name, known);
      }
    }
    onFile(i + 1);
  }
  return [...found.values()];
}

/** The texts of repositories of The Stack, on disk. */
export class StackSpool {
  readonly #dir: string;
  /** By repository, the number of its spool file. */
  readonly #places: ReadonlyMap<string, number>;
  readonly #maxFileBytes: number;
  /** The spool file that was read last. */
  #open: { readonly number: number; readonly texts: ReadonlyMap<string, ReadonlyMap<string, string>> } | undefined;

  private constructor(dir: string, places: ReadonlyMap<string, number>, maxFileBytes: number) {
    this.#dir = dir;
    this.#places = places;
    this.#maxFileBytes = maxFileBytes;
  }

  /**
   * Brings the texts of the repositories together, unless that was done before.
   * @param wanted in the order in which they will be opened
   * @throws ServingError path_unusable, sample_invalid; the signal's reason.
   */
  static async make(
    dir: string,
    paths: readonly string[],
    wanted: readonly StackRepository[],
    maxFileBytes: number,
    covers: (path: string) => boolean,
    onFile: (done: number) => void,
    signal: AbortSignal,
  ): Promise<StackSpool> {
    const places = new Map<string, number>();
    let before = 0;
    for (const { name, bytes } of wanted) {
      places.set(name, Math.floor(before / SPOOL_BYTES));
      before += bytes;
    }
    const spool = new StackSpool(dir, places, maxFileBytes);
    const mark = join(dir, 'complete.json');
    const plan = JSON.stringify({ files: paths.length, plan: hash52(JSON.stringify([...places])) });
    if ((await readFile(mark, 'utf8').catch(() => '')) === plan) return spool;
    await atPath(dir, async () => {
      await rm(dir, { recursive: true, force: true });
      await makeFolder(dir);
    });
    await spool.#fill(paths, covers, onFile, signal);
    await writeWhole(mark, plan);
    return spool;
  }

  #file(number: number): string {
    return join(this.#dir, `${String(number).padStart(6, '0')}.jsonl`);
  }

  async #fill(
    paths: readonly string[],
    covers: (path: string) => boolean,
    onFile: (done: number) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const waiting = new Map<number, string[]>();
    let characters = 0;
    const flush = async () => {
      for (const [number, lines] of waiting) {
        const file = this.#file(number);
        await atPath(file, () => appendFile(file, lines.join('')));
      }
      waiting.clear();
      characters = 0;
    };
    for (const [i, path] of paths.entries()) {
      const file = await ParquetFile.open(path);
      for await (const rows of file.rows(['repository', 'path', 'text'], signal)) {
        for (const { repository, path, text } of rows) {
          const number = this.#places.get(repository);
          if (number === undefined || text === undefined || !covers(path)) continue;
          const line = `${JSON.stringify([repository, path, text])}\n`;
          const lines = waiting.get(number);
          if (lines) lines.push(line);
          else waiting.set(number, [line]);
          characters += line.length;
          if (characters > WAITING_BYTES) await flush();
        }
      }
      onFile(i + 1);
    }
    await flush();
  }

  repository(name: string): Repository {
    return {
      name,
      open: async () => {
        const number = this.#places.get(name)!;
        if (this.#open?.number !== number) {
          this.#open = undefined; // two of them do not fit into memory
          this.#open = { number, texts: await this.#read(number) };
        }
        const texts = this.#open.texts.get(name) ?? new Map<string, string>();
        const selecting = { maxFileBytes: this.#maxFileBytes };
        return {
          paths: [...texts.keys()].sort(),
          read: async (path) => asSource(path, Buffer.from(texts.get(path) ?? ''), selecting),
          close: async () => {},
        };
      },
    };
  }

  async #read(number: number): Promise<Map<string, Map<string, string>>> {
    const file = this.#file(number);
    const lines = (await atPath(file, () => readFile(file))).toString('utf8').split('\n');
    const texts = new Map<string, Map<string, string>>();
    for (const line of lines) {
      if (line === '') continue;
      const [name, path, text] = JSON.parse(line) as [string, string, string];
      const files = texts.get(name) ?? new Map<string, string>();
      texts.set(name, files.set(path, text));
    }
    return texts;
  }
}
