/**
 * `llavacode demo --search`: completes at every cursor of the sample repository in all three modes and counts where the
 * answer is the rest of the real line. The sample's cursor was chosen from what it lists, so the counts belong to it.
 *
 * A cursor stands where a line begins, and behind each `(`, `.`, `= ` and `return ` of a line. The prompt is its line
 * up to there and the lines before. Comments, docstrings of one line and rests of a few characters are left out.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { globby } from 'globby';
import { streamCompletion } from './client.ts';
import { SAMPLE_REPOSITORY } from './lib/process/package-root.ts';
import { SAMPLE_REPO } from './sample.ts';

export const MODES = ['off', 'text', 'compressed'] as const;
export type ContextMode = (typeof MODES)[number];

interface Cursor {
  readonly path: string;
  /** Counts from 1. */
  readonly line: number;
  readonly before: string;
  /** The rest of the cursor's line. */
  readonly rest: string;
}

export interface SearchedCursor extends Cursor {
  readonly answers: Readonly<Record<ContextMode, string>>;
}

/** Lines before the cursor's own that are in the prompt. */
const LINES_BEFORE = 8;
/** The first lines of a file have nothing before them to complete from. */
const FIRST_LINE = 3;
const MIN_REST_CHARACTERS = 8;
const PLACES = /(?:= |return |\(|\.)(?=\w)/g;
const NOT_CODE = /^\s*(?:""".*"""\s*$|#)/;
/** A first request asks for so few tokens: most answers are wrong from the beginning. */
const FIRST_TOKENS = 3;
const MAX_TOKENS = 40;
/** Requests at once: the slots of a worker. */
const CONCURRENCY = 4;
const DEADLINE_MS = 60_000;

/** Whether an answer is the rest of the real line. */
export const isRight = (answer: string, rest: string) => answer.trimEnd() === rest.trimEnd();

/** All cursors of the sample repository, in the order of its files. */
export async function sampleCursors(): Promise<Cursor[]> {
  const paths = (await globby('**/*.py', { cwd: SAMPLE_REPOSITORY })).sort();
  const perFile = paths.map(async (path) => {
    const lines = (await readFile(join(SAMPLE_REPOSITORY, path), 'utf8')).split('\n');
    return lines.flatMap((line, i) => (i < FIRST_LINE || NOT_CODE.test(line) ? [] : cursorsOfLine(path, lines, i)));
  });
  return (await Promise.all(perFile)).flat();
}

function cursorsOfLine(path: string, lines: readonly string[], i: number): Cursor[] {
  const line = lines[i] as string;
  const above = lines.slice(Math.max(0, i - LINES_BEFORE), i).map((text) => `${text}\n`);
  const columns = [0, ...[...line.matchAll(PLACES)].map((match) => match.index + match[0].length)];
  return columns
    .filter((column) => line.slice(column).trim().length >= MIN_REST_CHARACTERS)
    .map((column) => ({
      path,
      line: i + 1,
      before: above.join('') + line.slice(0, column),
      rest: line.slice(column),
    }));
}

/**
 * Completes at every cursor in all modes, greedily.
 * @param onProgress called after each cursor.
 * @throws ServingError; the reason of `stop`.
 */
export async function searchCursors(
  url: string,
  cursors: readonly Cursor[],
  stop: AbortSignal,
  onProgress: (done: number) => void,
): Promise<SearchedCursor[]> {
  const found: SearchedCursor[] = [];
  const left = cursors.values(); // shared: each runner takes the next one
  const run = async () => {
    for (const cursor of left) {
      stop.throwIfAborted();
      const answers = { off: '', text: '', compressed: '' };
      for (const mode of MODES) answers[mode] = await answer(url, cursor, mode);
      found.push({ ...cursor, answers });
      onProgress(found.length);
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, run));
  return found;
}

async function answer(url: string, { path, before, rest }: Cursor, mode: ContextMode): Promise<string> {
  const complete = async (maxTokens: number) => {
    const rag = { repo: SAMPLE_REPO, mode, path };
    const body = { prompt: before, max_tokens: maxTokens, temperature: 0, stop: ['\n'], rag };
    return (await streamCompletion(url, body, AbortSignal.timeout(DEADLINE_MS))).text;
  };
  const beginning = await complete(FIRST_TOKENS);
  return beginning !== '' && rest.startsWith(beginning.trimEnd()) ? complete(MAX_TOKENS) : beginning;
}

/** Number of cursors by the modes that were right there, such as `text+compressed`; `none` where no mode was. */
export function countByModes(found: readonly SearchedCursor[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { answers, rest } of found) {
    const right = MODES.filter((mode) => isRight(answers[mode], rest)).join('+') || 'none';
    counts[right] = (counts[right] ?? 0) + 1;
  }
  return counts;
}
