/** Files of JSON lines, gzipped or not, read line by line: they may be larger than memory. */
import type { Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, reasonOf } from '../../services/lib/process/os-errors.ts';

export interface JsonLine {
  /** File and line, for messages. */
  readonly name: string;
  readonly value: unknown;
}

/**
 * The values of a file, in its order; blank lines hold none. Nothing is read ahead of what is taken, but for a buffer.
 * @param path gzipped where its name ends in .gz
 * @param digest told of the bytes as they lie on disk
 * @throws ServingError path_unusable; sample_invalid, with file and line, for what is not JSON or not gzip.
 */
export async function* jsonLines(path: string, digest?: Hash): AsyncGenerator<JsonLine> {
  let line = 0;
  const lines = linesOf(opened(path, digest));
  const next = () => atPath(path, () => lines.next());
  try {
    for (let read = await next(); !read.done; read = await next()) {
      line++;
      const text = read.value.toString('utf8');
      if (text.trim() !== '') yield { name: `${path}:${line}`, value: parsed(`${path}:${line}`, text) };
    }
  } catch (cause) {
    if (!(cause instanceof Error && 'code' in cause && String(cause.code).startsWith('Z_'))) throw cause;
    throw new ServingError('sample_invalid', `${path} is not gzip, or is damaged: ${reasonOf(cause)}`, { cause });
  } finally {
    await lines.return(undefined); // closes the file where nobody wants the rest
  }
}

function parsed(name: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ServingError('sample_invalid', `${name} is not JSON`, { cause });
  }
}

/** The bytes of a file, unpacked; `digest` is told of them as they lie on disk. */
function opened(path: string, digest: Hash | undefined): AsyncIterable<Buffer> {
  async function* hashed(parts: AsyncIterable<Buffer>) {
    for await (const part of parts) {
      digest?.update(part);
      yield part;
    }
  }
  const file = createReadStream(path);
  if (!path.endsWith('.gz')) return hashed(file);
  return pipeline(file, hashed, createGunzip(), () => {}); // whoever reads it hears of errors
}

/** Lines end with \n alone: JSON may hold other line separators as they are. */
async function* linesOf(parts: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let begun: Buffer[] = [];
  for await (const part of parts) {
    let start = 0;
    for (let end = part.indexOf(10); end >= 0; end = part.indexOf(10, start)) {
      yield Buffer.concat([...begun, part.subarray(start, end)]);
      begun = [];
      start = end + 1;
    }
    begun.push(part.subarray(start));
  }
  yield Buffer.concat(begun);
}
