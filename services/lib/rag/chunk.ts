/**
 * Cuts files into chunks, and texts into identifier sets.
 *
 * The paper cuts code into windows of 10·n lines that overlap by 5·n (§4.1; n = lines to complete). An index is built
 * before anybody completes anything, so n is 1 here: windows of 10 lines, one every 5. Blank lines are dropped first
 * and do not count, as in the data builder whose format the authors use (Repoformer's 1_create_chunk.py; also
 * CrossCodeEval), so a window always holds ten lines of code. Line numbers are those of the file.
 */
import { createHash } from 'node:crypto';
import { atOnce } from '../async/turns.ts';
import { ServingError } from '../process/errors.ts';

export interface Chunk {
  /** SHA-256 over path, line range and text, in hex: the same chunk has the same id in every run. */
  readonly id: string;
  /** Relative to the repository's root, with forward slashes. */
  readonly path: string;
  /** Number of the first line, from 1. */
  readonly startLine: number;
  /** Number of the last line, from 1, inclusive. */
  readonly endLine: number;
  /** The lines without blank ones, joined by \n. */
  readonly text: string;
  /** Distinct identifiers in order of appearance, at most {@link MAX_IDENTIFIERS}. */
  readonly tokens: readonly string[];
}

export interface Chunking {
  /** Non-blank lines of one chunk. */
  readonly chunkLines: number;
  /** Non-blank lines between the starts of two chunks. */
  readonly chunkStride: number;
}

/** UTF-16 units of a line that are kept: longer lines are data, and no encoder reads that far. */
const LINE_LENGTH = 4_096;

/**
 * Ten lines of code have 20 to 60 identifiers. Ten lines of data have thousands, which every gateway would keep in
 * memory.
 */
const MAX_IDENTIFIERS = 256;

/** Words as Python's `\w+` finds them: letters and digits of any script, case-sensitive. */
const WORD = /[\p{L}\p{N}_]+/gu;

/** The identifier set that lexical retrieval compares. */
export function identifiers(text: string): string[] {
  return [...new Set(text.match(WORD))];
}

/**
 * Cuts one file into windows over its non-blank lines. The last window ends with the file, and no window lies wholly
 * inside another.
 * @throws ServingError config_invalid if the stride would skip lines.
 */
export function chunkFile(path: string, text: string, chunking: Chunking): Chunk[] {
  return atOnce(chunkSteps(path, text, chunking));
}

/** Does the work of {@link chunkFile} in steps, chunk by chunk. */
export function* chunkSteps(
  path: string,
  text: string,
  { chunkLines, chunkStride }: Chunking,
): Generator<void, Chunk[]> {
  if (chunkStride > chunkLines) {
    throw new ServingError(
      'config_invalid',
      `--chunk-stride ${chunkStride} is larger than --chunk-lines ${chunkLines}: the lines in between would be lost`,
    );
  }
  const lines: { number: number; text: string }[] = [];
  for (const [i, line] of text.split(/\r\n|\n|\r/).entries()) {
    if (line.trim() !== '') lines.push({ number: i + 1, text: cut(line) });
  }
  const chunks: Chunk[] = [];
  for (let start = 0; start < lines.length; start += chunkStride) {
    const window = lines.slice(start, start + chunkLines);
    chunks.push(makeChunk(path, window));
    yield;
    if (start + chunkLines >= lines.length) break;
  }
  return chunks;
}

/** The beginning of a line, not cut in the middle of a character. */
function cut(line: string): string {
  if (line.length <= LINE_LENGTH) return line;
  return /[\uD800-\uDBFF]/.test(line.charAt(LINE_LENGTH - 1))
    ? line.slice(0, LINE_LENGTH - 1)
    : line.slice(0, LINE_LENGTH);
}

function makeChunk(path: string, lines: readonly { number: number; text: string }[]): Chunk {
  const text = lines.map((line) => line.text).join('\n');
  return chunkOf({ path, startLine: lines[0]!.number, endLine: lines.at(-1)!.number }, text);
}

/** The chunk of these lines. Its id is a hash of all that is given. */
export function chunkOf(at: Pick<Chunk, 'path' | 'startLine' | 'endLine'>, text: string): Chunk {
  const { path, startLine, endLine } = at;
  const id = createHash('sha256').update(`${path}\0${startLine}\0${endLine}\0${text}`).digest('hex');
  return { id, path, startLine, endLine, text, tokens: identifiers(text).slice(0, MAX_IDENTIFIERS) };
}
