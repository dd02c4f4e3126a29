/**
 * `llavacode demo` completes at one cursor of the sample repository in three modes: without context, with the retrieved
 * chunks as text, and with the same chunks as soft tokens. It starts a system for that and stops it again.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type StreamedCompletion, streamCompletion, tpotMs, ttftMs } from './client.ts';
import {
  type ContextMode,
  countByModes,
  isRight,
  MODES,
  type SearchedCursor,
  sampleCursors,
  searchCursors,
} from './demo-search.ts';
import { interruption } from './lib/process/interrupt.ts';
import { SAMPLE_REPOSITORY } from './lib/process/package-root.ts';
import { startProgress } from './lib/process/progress.ts';
import { SAMPLE, SAMPLE_BODY, SAMPLE_REPO, SEARCHED } from './sample.ts';
import type { RunningSystem } from './supervisor.ts';
import { bringUp, loadUpConfig } from './up.ts';

/** Rounds per mode. The modes take turns, so that a disturbance meets all of them. */
const ROUNDS = 11;
const DEADLINE_MS = 60_000;
/** Lines before the cursor that are printed. */
const SHOWN_LINES = 4;
const NAMES: Readonly<Record<ContextMode, string>> = {
  off: 'without context',
  text: 'chunks as text',
  compressed: 'chunks compressed',
};

interface Spread {
  readonly median: number;
  /** The lower and the upper quartile. */
  readonly quartiles: readonly [number, number];
}

interface Row {
  readonly mode: ContextMode;
  readonly text: string;
  readonly isRight: boolean;
  readonly promptTokens: number;
  readonly softTokens: number;
  readonly chunks: readonly string[];
  readonly ttftMs: Spread;
  readonly tpotMs: Spread;
}

/**
 * Runs the demo, prints the figures and returns them. Everything that it made is removed afterwards.
 * @throws ServingError, Interrupted.
 */
export async function runDemo(): Promise<Row[]> {
  return onSystem({}, async (url, stop) => {
    const rows = await complete(url, stop);
    process.stdout.write(`${answersText(rows)}\n${latencyText(rows)}\n${choiceText()}\n`);
    return rows;
  });
}

/**
 * Completes at every cursor of the sample repository, and prints the counts and the cursors that only context gets
 * right. This takes ten minutes on two cores.
 * @throws ServingError, Interrupted.
 */
export async function runDemoSearch(): Promise<{ counts: Record<string, number>; found: SearchedCursor[] }> {
  // Nobody waits for these answers: a slow machine must not have one refused.
  return onSystem({ targetTtftMs: DEADLINE_MS }, async (url, stop) => {
    const cursors = await sampleCursors();
    const progress = startProgress('searching');
    const found = await searchCursors(url, cursors, stop, (done) => {
      progress.update(`${done} of ${cursors.length} cursors`);
    });
    progress.succeed(`${found.length} cursors`);
    const counts = countByModes(found);
    process.stdout.write(`${searchText(counts, found)}\n`);
    return { counts, found };
  });
}

async function onSystem<T>(
  more: Readonly<Record<string, unknown>>,
  task: (url: string, stop: AbortSignal) => Promise<T>,
): Promise<T> {
  const stop = interruption();
  const data = await mkdtemp(join(tmpdir(), 'llavacode-demo-'));
  const store = `lmdb:${join(data, 'store')}`;
  let system: RunningSystem | undefined;
  try {
    // A machine that is busy must not cost the demo its context.
    const flags = {
      port: 0,
      data,
      store,
      logLevel: 'warn',
      index: [SAMPLE_REPOSITORY],
      retrievalBudgetMs: 1_000,
      ...more,
    };
    system = await bringUp(loadUpConfig(flags), stop);
    return await task(system.url, stop);
  } finally {
    await system?.close();
    await rm(data, { recursive: true, force: true });
  }
}

async function complete(url: string, stop: AbortSignal): Promise<Row[]> {
  const runs = new Map<ContextMode, StreamedCompletion[]>(MODES.map((mode) => [mode, []]));
  for (let round = 0; round < ROUNDS; round++) {
    for (const mode of MODES) {
      stop.throwIfAborted();
      const rag = { repo: SAMPLE_REPO, mode, path: SAMPLE.path };
      // A salt of its own makes each prompt a new one: nothing of the KV cache of the round before is reused.
      const body = { ...SAMPLE_BODY, rag, cache_salt: `round ${round}` };
      runs.get(mode)?.push(await streamCompletion(url, body, AbortSignal.timeout(DEADLINE_MS)));
    }
  }
  return [...runs].map(([mode, completions]) => {
    const last = completions.at(-1) as StreamedCompletion;
    return {
      mode,
      text: last.text,
      isRight: isRight(last.text, SAMPLE.rest),
      promptTokens: last.usage.prompt_tokens,
      softTokens: last.usage.prompt_tokens_details?.soft_tokens ?? 0,
      chunks: last.rag?.chunks.map((chunk) => `${chunk.path}:${chunk.start_line}-${chunk.end_line}`) ?? [],
      ttftMs: spread(completions.map(ttftMs)),
      tpotMs: spread(completions.map(tpotMs).filter((ms) => ms !== undefined)),
    };
  });
}

function spread(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))] ?? Number.NaN;
  return { median: at(0.5), quartiles: [at(0.25), at(0.75)] };
}

/** The code at the cursor, and the three answers one below the other. */
function answersText(rows: readonly Row[]): string {
  const lines = SAMPLE.before.split('\n').slice(-SHOWN_LINES);
  const cell = (name: string) => name.padEnd(20);
  return [
    `\nThe cursor (█) in ${SAMPLE.path}:\n`,
    ...lines.map((line, i) => `    ${line}${i === lines.length - 1 ? '█' : ''}`),
    '',
    `${cell('the real line')}${SAMPLE.rest.trim()}`,
    ...rows.map(({ mode, text, isRight }) => `${cell(NAMES[mode])}${text.trim()}   ${isRight ? '✔' : '✘'}`),
    '\nthe chunks, best first',
    ...(rows.find(({ mode }) => mode === 'compressed')?.chunks ?? []).map((chunk) => `    ${chunk}`),
    '',
  ].join('\n');
}

function latencyText(rows: readonly Row[]): string {
  const line = (cells: readonly string[]) =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(12) : cell.padStart(i < 3 ? 15 : 24))).join('');
  const ms = ({ median, quartiles: [low, high] }: Spread) =>
    `${median.toFixed(1)} (${low.toFixed(1)} to ${high.toFixed(1)})`;
  return [
    line(['context', 'prompt tokens', 'of them soft', 'TTFT ms', 'TPOT ms']),
    ...rows.map(({ mode, promptTokens, softTokens, ttftMs, tpotMs }) =>
      line([mode, String(promptTokens), String(softTokens), ms(ttftMs), ms(tpotMs)]),
    ),
    `\nMedians and quartiles of ${ROUNDS} rounds; every prompt is computed anew.\n`,
  ].join('\n');
}

/** How the cursor came about: chosen, and from how many. */
function choiceText(): string {
  const { cursors, right, gained, lost } = SEARCHED;
  return [
    'The cursor was chosen. The model that ships has 5.8 million parameters, and context makes it hardly better:',
    `of ${cursors} cursors of this repository it completes the line at ${right.off} without context, ${right.text} with text`,
    `(${gained.text} gained, ${lost.text} lost), and ${right.compressed} with compressed context ` +
      `(${gained.compressed} gained, ${lost.compressed} lost).`,
    'llavacode demo --search counts and lists them.\n',
  ].join('\n');
}

function searchText(counts: Readonly<Record<string, number>>, found: readonly SearchedCursor[]): string {
  const gained = found.filter(({ answers, rest }) => !isRight(answers.off, rest) && isRight(answers.compressed, rest));
  return [
    `\nRight in these modes, of ${found.length} cursors:`,
    ...Object.entries(counts).map(([modes, count]) => `  ${modes.padEnd(22)}${String(count).padStart(6)}`),
    '\nRight with compressed context and not without:',
    ...gained.map(({ path, line, answers, rest }) => {
      const text = isRight(answers.text, rest) ? 'text is right too' : `text ${JSON.stringify(answers.text)}`;
      return `  ${path}:${line} ${JSON.stringify(rest)}; without ${JSON.stringify(answers.off)}; ${text}`;
    }),
  ].join('\n');
}
