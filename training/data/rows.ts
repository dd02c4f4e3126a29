/**
 * Data sets as JSON lines in the fields of the authors' code: `prompt` (before the gap), `right_context` (after it),
 * `groundtruth` (in it) and `crossfile_array`, the chunks of other files, best first, each with its path in its first
 * line.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';

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
  /** SHA-256 of the file, in hex. */
  readonly digest: string;
}

const rowSchema = z.object({
  prompt: z.string(),
  right_context: z.string().default(''),
  groundtruth: z.string().min(1, 'has no text: leave the sample out'),
  crossfile_array: z.array(z.string()).min(1, 'has no chunk: leave the sample out'),
});

/** A chunk's first line is its path, mostly as a comment. */
function chunkOf(text: string): Chunk {
  const end = text.indexOf('\n');
  if (end < 0) return { path: '', text };
  return { path: text.slice(0, end).replace(/^\s*(?:#|\/\/)\s*/, ''), text: text.slice(end + 1) };
}

/** @throws ServingError path_unusable; sample_invalid with file, line and field. */
export async function readDataSet(path: string): Promise<DataSet> {
  const bytes = await atPath(path, () => readFile(path));
  const rows = bytes
    .toString('utf8')
    .split('\n')
    .flatMap((line, i) => (line.trim() === '' ? [] : [rowOf(path, i, line)]));
  if (rows.length === 0) throw new ServingError('sample_invalid', `${path} has no samples`);
  return { rows, digest: createHash('sha256').update(bytes).digest('hex') };
}

function rowOf(path: string, index: number, line: string): DataRow {
  const name = `${path}:${index + 1}`;
  let json: unknown;
  try {
    json = JSON.parse(line);
  } catch (cause) {
    throw new ServingError('sample_invalid', `${name} is not JSON`, { cause });
  }
  const parsed = rowSchema.safeParse(json);
  if (!parsed.success) {
    const why = parsed.error.issues
      .map((issue) => `${issue.path.join('.') || 'the line'}: ${issue.message}`)
      .join('; ');
    throw new ServingError('sample_invalid', `${name}: ${why}`);
  }
  const { prompt, right_context, groundtruth, crossfile_array } = parsed.data;
  return { name, left: prompt, right: right_context, target: groundtruth, chunks: crossfile_array.map(chunkOf) };
}
