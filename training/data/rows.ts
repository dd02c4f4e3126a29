/**
 * Data sets as JSON lines in the fields of the authors' code: `prompt` (before the gap), `right_context` (after it),
 * `groundtruth` (in it) and `crossfile_array`, the chunks of other files, best first, each with its path in its first
 * line. A data set is one file, gzipped or not, or a folder that `llavacode dataset` has made.
 */
import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { deflateSync, inflateSync } from 'node:zlib';
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { jsonLines } from './json-lines.ts';
import { MANIFEST, readManifest, type Split } from './manifest.ts';

export interface DataRow {
  /** File and line, for messages. */
  readonly name: string;
  readonly left: string;
  readonly right: string;
  readonly target: string;
  readonly chunks: readonly Chunk[];
}

/** A few lines of another file of the repository. */
export interface Chunk {
  readonly path: string;
  readonly text: string;
}

export interface DataSet {
  readonly rows: readonly DataRow[];
  /** SHA-256 of the file, or over those of the shards, in hex. */
  readonly digest: string;
}

const rowSchema = z.object({
  prompt: z.string(),
  right_context: z.string().default(''),
  groundtruth: z.string().min(1, 'has no text: leave the sample out'),
  crossfile_array: z.array(z.string()).min(1, 'has no chunk: leave the sample out'),
});

/** A chunk's first line is its path, mostly as a comment. */
export function chunkOf(text: string): Chunk {
  const end = text.indexOf('\n');
  if (end < 0) return { path: '', text };
  return { path: text.slice(0, end).replace(/^\s*(?:#|\/\/)\s*/, ''), text: text.slice(end + 1) };
}

/**
 * A row as it lies in memory: deflated, since 100,000 rows have 2.6 GB of text and 0.7 GB packed. Each field
 * that is read inflates it, in some 0.1 ms.
 */
class PackedRow implements DataRow {
  readonly name: string;
  readonly #packed: Buffer;

  constructor(name: string, fields: z.infer<typeof rowSchema>) {
    this.name = name;
    this.#packed = deflateSync(JSON.stringify(fields), { level: 1 });
  }

  get #fields(): z.infer<typeof rowSchema> {
    return JSON.parse(inflateSync(this.#packed).toString('utf8')) as z.infer<typeof rowSchema>;
  }

  get left(): string {
    return this.#fields.prompt;
  }

  get right(): string {
    return this.#fields.right_context;
  }

  get target(): string {
    return this.#fields.groundtruth;
  }

  get chunks(): readonly Chunk[] {
    return this.#fields.crossfile_array.map(chunkOf);
  }
}

/**
 * Reads a data set.
 * @param path a file of JSON lines, gzipped where its name ends in .gz; or a folder of `llavacode dataset`
 * @param split which one of a folder
 * @throws ServingError path_unusable; sample_invalid with file, line and field, or for a shard that is damaged.
 */
export async function readDataSet(path: string, split: Split): Promise<DataSet> {
  const isFolder = (await atPath(path, () => stat(path))).isDirectory();
  const rows: DataRow[] = [];
  const digest = isFolder ? await readShards(path, split, rows) : await readLines(path, rows);
  const remedy = isFolder ? `: make it of more repositories${split === 'valid' ? ', or name other samples' : ''}` : '';
  const what = isFolder ? `the ${split} split of ${path}` : path;
  if (rows.length === 0) throw new ServingError('sample_invalid', `${what} has no samples${remedy}`);
  return { rows, digest };
}

/** @returns the digest of the split. */
async function readShards(dir: string, split: Split, rows: DataRow[]): Promise<string> {
  const { shards, digest } = (await readManifest(join(dir, MANIFEST))).splits[split];
  for (const { file, samples, sha256 } of shards) {
    const before = rows.length;
    const found = await readLines(join(dir, file), rows);
    if (found === sha256 && rows.length - before === samples) continue;
    const message = `${join(dir, file)} is not the shard of ${MANIFEST}: its SHA-256 is ${found}, not ${sha256}; make the data set again`;
    throw new ServingError('sample_invalid', message);
  }
  return digest;
}

/** @returns SHA-256 of the file, in hex. */
async function readLines(path: string, rows: DataRow[]): Promise<string> {
  const digest = createHash('sha256');
  for await (const { name, value } of jsonLines(path, digest)) rows.push(rowOf(name, value));
  return digest.digest('hex');
}

function rowOf(name: string, value: unknown): DataRow {
  const parsed = rowSchema.safeParse(value);
  if (parsed.success) return new PackedRow(name, parsed.data);
  const why = parsed.error.issues.map((issue) => `${issue.path.join('.') || 'the line'}: ${issue.message}`).join('; ');
  throw new ServingError('sample_invalid', `${name}: ${why}`);
}
