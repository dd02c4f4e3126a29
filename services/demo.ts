/**
 * `llavacode demo` completes at one cursor of the sample repository three times: without context, with the retrieved
 * chunks as text, and with the same chunks as soft tokens. It starts a system for that and stops it again.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type CompletionBody, type StreamedCompletion, streamCompletion, tpotMs, ttftMs } from './client.ts';
import { interruption } from './lib/process/interrupt.ts';
import { PACKAGE_ROOT } from './lib/process/package-root.ts';
import type { RunningSystem } from './supervisor.ts';
import { bringUp, loadUpConfig } from './up.ts';

const SAMPLE_REPOSITORY = join(PACKAGE_ROOT, 'examples', 'shop');
/** The cursor stands right after this text. The definition that the completion needs is in shop/inventory.py. */
const CURSOR = { path: 'shop/checkout.py', after: '        quote = self._prices.quote(cart, customer, now.date())\n' };
const MODES = ['off', 'text', 'compressed'] as const;
/** Rounds per mode. The modes take turns, and the medians are shown. */
const ROUNDS = 5;
const DEADLINE_MS = 30_000;

interface Row {
  readonly mode: (typeof MODES)[number];
  readonly text: string;
  readonly promptTokens: number;
  readonly softTokens: number;
  readonly chunks: readonly string[];
  readonly ttftMs: number;
  readonly tpotMs: number;
}

/**
 * Runs the demo, prints the figures and returns them. Everything that it made is removed afterwards.
 * @throws ServingError, Interrupted.
 */
export async function runDemo(): Promise<Row[]> {
  const stop = interruption();
  const data = await mkdtemp(join(tmpdir(), 'llavacode-demo-'));
  const flags = { port: 0, data, store: `lmdb:${join(data, 'store')}`, logLevel: 'warn', index: [SAMPLE_REPOSITORY] };
  let system: RunningSystem | undefined;
  try {
    system = await bringUp(loadUpConfig(flags), stop);
    const source = await readFile(join(SAMPLE_REPOSITORY, CURSOR.path), 'utf8');
    const at = source.indexOf(CURSOR.after) + CURSOR.after.length;
    const body = { prompt: source.slice(0, at), suffix: source.slice(at), max_tokens: 24, temperature: 0 };
    const rows = await complete(system.url, body, stop);
    print(rows);
    return rows;
  } finally {
    await system?.close();
    await rm(data, { recursive: true, force: true });
  }
}

async function complete(url: string, body: CompletionBody, stop: AbortSignal): Promise<Row[]> {
  const runs = new Map<Row['mode'], StreamedCompletion[]>(MODES.map((mode) => [mode, []]));
  for (let round = 0; round < ROUNDS; round++) {
    for (const mode of MODES) {
      const rag = { repo: 'shop', mode, path: CURSOR.path };
      stop.throwIfAborted();
      runs.get(mode)?.push(await streamCompletion(url, { ...body, rag }, AbortSignal.timeout(DEADLINE_MS)));
    }
  }
  return [...runs].map(([mode, completions]) => {
    const last = completions.at(-1) as StreamedCompletion;
    return {
      mode,
      text: last.text,
      promptTokens: last.usage.prompt_tokens,
      softTokens: last.usage.prompt_tokens_details?.soft_tokens ?? 0,
      chunks: last.rag?.chunks.map((chunk) => `${chunk.path}:${chunk.start_line}-${chunk.end_line}`) ?? [],
      ttftMs: median(completions.map(ttftMs)),
      tpotMs: median(completions.map(tpotMs).filter((ms) => ms !== undefined)),
    };
  });
}

function print(rows: readonly Row[]): void {
  const out = process.stdout;
  out.write(`\nThe cursor: ${CURSOR.path}, after\n${CURSOR.after}\n`);
  for (const row of rows) {
    out.write(
      `context ${row.mode}: ${row.chunks.length} chunks${row.chunks.length > 0 ? ` (${row.chunks.join(', ')})` : ''}\n`,
    );
    out.write(`${row.text.replace(/^/gm, '    | ')}\n\n`);
  }
  const line = (cells: readonly string[]) =>
    `${cells.map((cell, i) => (i === 0 ? cell.padEnd(12) : cell.padStart(15))).join('')}\n`;
  out.write(line(['context', 'prompt tokens', 'of them soft', 'TTFT ms', 'TPOT ms']));
  for (const { mode, promptTokens, softTokens, ttftMs: ttft, tpotMs: tpot } of rows) {
    out.write(line([mode, String(promptTokens), String(softTokens), ttft.toFixed(1), tpot.toFixed(1)]));
  }
  out.write(`\nMedians of ${ROUNDS} rounds. The model that ships is small and often wrong; see models/tiny-coder.\n`);
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}
