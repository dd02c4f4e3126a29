/**
 * `bench typing`: an editing session, keystroke by keystroke. As an editor's plug-in would send it, at the speed at
 * which it was typed: a request once the typist has paused for `debounceMs`, and the next keystroke hangs up on it. Or
 * with a typist who waits for the answer after every keystroke: what reuse spares, on a machine of whatever speed.
 */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import type { PromptOrder } from '../../services/lib/text/prompt-format.ts';
import { e2e, type Percentiles, percentiles, type RequestRecord, ttft } from '../measure/latency.ts';
import { type PlannedRequest, sendOne } from '../measure/load-client.ts';
import type { ContextMode } from '../system/prompts.ts';

const SESSION = join(PACKAGE_ROOT, 'bench', 'data', 'typing-session.jsonl');

const header = z.strictObject({ path: z.string(), line: z.int().min(0), note: z.string() });
const event = z.union([
  z.strictObject({ at_ms: z.number(), insert: z.string().min(1) }),
  z.strictObject({ at_ms: z.number(), delete: z.int().min(1) }),
]);

/** What an editor holds after a keystroke. */
export interface Keystroke {
  readonly atMs: number;
  readonly before: string;
  readonly after: string;
}

export interface Session {
  /** Of the file, within the repository. */
  readonly path: string;
  readonly keystrokes: readonly Keystroke[];
}

/** @param source text of the file before the session. */
export function replaySession(lines: string, source: string): Session {
  const [first, ...rest] = lines.split('\n').filter((line) => line !== '');
  const { path, line } = header.parse(JSON.parse(first ?? '{}'));
  const sourceLines = source.split('\n');
  const after = sourceLines.slice(line).join('\n');
  let before = sourceLines
    .slice(0, line)
    .map((text) => `${text}\n`)
    .join('');
  const keystrokes = rest.map((text) => {
    const change = event.parse(JSON.parse(text));
    before = 'insert' in change ? before + change.insert : before.slice(0, -change.delete);
    return { atMs: change.at_ms, before, after };
  });
  return { path, keystrokes };
}

/** The session that ships, its first so many keystrokes. */
export async function loadSession(dir: string, keystrokes = Number.POSITIVE_INFINITY): Promise<Session> {
  const lines = await readFile(SESSION, 'utf8');
  const { path } = header.parse(JSON.parse(lines.slice(0, lines.indexOf('\n'))));
  const session = replaySession(lines, await readFile(join(dir, path), 'utf8'));
  return { path, keystrokes: session.keystrokes.slice(0, keystrokes) };
}

export interface TypingOptions {
  readonly repo: string;
  /** As it was typed, or each keystroke after the answer to the one before. */
  readonly pace: 'typed' | 'answered';
  readonly promptOrder: PromptOrder;
  readonly context: ContextMode;
  /** Whether what earlier requests computed may be used again. */
  readonly reuse: boolean;
  readonly debounceMs: number;
  readonly outputTokens: number;
  readonly timeoutMs: number;
}

export interface TypingRun {
  readonly deployment: string;
  readonly context: ContextMode;
  readonly promptOrder: PromptOrder;
  readonly reuse: boolean;
  readonly keystrokes: number;
  /** Requests sent; of these answered in full before the next one was due, and hung up on. */
  readonly requests: number;
  readonly answered: number;
  readonly cancelled: number;
  readonly failed: number;
  /** Requests of which at least the first token came in time. */
  readonly begun: number;
  /** Of the prompts of answered requests, the share whose KV was there already. */
  readonly cachedShare: number;
  readonly ttft: Percentiles;
  readonly e2e: Percentiles;
  readonly records: readonly RequestRecord[];
}

export interface TypingResult {
  readonly model: string;
  readonly options: Omit<TypingOptions, 'context' | 'promptOrder' | 'reuse'>;
  readonly runs: readonly TypingRun[];
}

export async function measureTyping(
  url: string,
  deployment: string,
  { path, keystrokes }: Session,
  options: TypingOptions,
): Promise<TypingRun> {
  const { repo, pace, context, promptOrder, reuse, debounceMs, outputTokens, timeoutMs } = options;
  const startMs = performance.now();
  const salt = randomUUID(); // a session finds nothing of another one
  const ask = (request: Omit<PlannedRequest, 'body'>, { before, after }: Keystroke, index: number) => {
    const body = {
      ...{ prompt: before, suffix: after, max_tokens: outputTokens, temperature: 0 },
      ...(context !== 'off' && { rag: { repo, path, mode: context } }),
      cache_salt: reuse ? salt : randomUUID(),
    };
    return sendOne(url, { ...request, body }, index, startMs, { timeoutMs });
  };
  const records: RequestRecord[] = [];
  if (pace === 'answered') {
    for (const [i, key] of keystrokes.entries()) {
      records.push(await ask({ atMs: performance.now() - startMs }, key, i));
    }
  } else {
    const pauses = keystrokes.flatMap((key, i) => {
      const untilNext = (keystrokes[i + 1]?.atMs ?? Number.POSITIVE_INFINITY) - key.atMs;
      return untilNext < debounceMs ? [] : [{ key, untilNext }];
    });
    const asked = pauses.map(async ({ key, untilNext }, i) => {
      const atMs = key.atMs + debounceMs;
      await delay(Math.max(0, atMs - (performance.now() - startMs)));
      const cancelAfterMs = Number.isFinite(untilNext) ? untilNext - debounceMs : undefined;
      return ask({ atMs, ...(cancelAfterMs !== undefined && { cancelAfterMs }) }, key, i);
    });
    records.push(...(await Promise.all(asked)));
  }
  const ok = records.filter(({ outcome }) => outcome === 'ok');
  const total = (of: (record: RequestRecord) => number) => ok.reduce((sum, record) => sum + of(record), 0);
  const begun = records.filter(({ chunksMs }) => chunksMs.length > 0);
  return {
    deployment,
    context,
    promptOrder,
    reuse,
    keystrokes: keystrokes.length,
    requests: records.length,
    answered: ok.length,
    cancelled: records.filter(({ outcome }) => outcome === 'cancelled').length,
    failed: records.filter(({ outcome }) => outcome === 'failed').length,
    begun: begun.length,
    cachedShare: total(({ cachedTokens }) => cachedTokens) / total(({ promptTokens }) => promptTokens),
    ttft: percentiles(begun.map(ttft)),
    e2e: percentiles(ok.filter(({ chunksMs }) => chunksMs.length > 0).map(e2e)),
    records,
  };
}
