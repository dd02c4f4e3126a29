/**
 * What a warm-up is worth: the first token of a keystroke before which its prompt was computed and kept by a request
 * for no output (`max_tokens: 0`, which is `n_predict: 0` of llama.cpp's clients), against that of a keystroke that
 * comes after a completion of the same session. Both reuse the same prefix, so both should take as long. The two are
 * measured in turns, in changing order, and nothing is shared between two measurements.
 */
import { randomUUID } from 'node:crypto';
import { type ClientRecord, ttft } from '../measure/latency.ts';
import { sendOne } from '../measure/load-client.ts';
import { median, medianInterval } from '../measure/statistics.ts';
import type { ReplayOptions, Variant, WarmUpRun } from './measure.ts';
import type { Keystroke, Session } from './session.ts';

/** Keystrokes of the session from one pair to the next: neighbours tell the same. */
const STRIDE = 8;

/** Output tokens of the keystrokes: the second one shows that the answer goes on. */
const OUTPUT_TOKENS = 2;

export async function measureWarmUps(
  url: string,
  deployment: string,
  { path, keystrokes }: Session,
  {
    repo,
    context,
    promptOrder,
    timeoutMs,
  }: Pick<ReplayOptions & Variant, 'repo' | 'context' | 'promptOrder' | 'timeoutMs'>,
): Promise<WarmUpRun> {
  const startMs = performance.now();
  const ask = (key: Keystroke, salt: string, maxTokens: number, index: number): Promise<ClientRecord> => {
    const body = {
      prompt: key.before,
      suffix: key.after,
      max_tokens: maxTokens,
      // Output that is counted is not shared: what was generated for the first keystroke answers no other one.
      min_tokens: Math.min(maxTokens, 1),
      temperature: 0,
      ...(context !== 'off' && { rag: { repo, path, mode: context } }),
      ...(context === 'off' && { session: salt }),
      cache_salt: salt,
    };
    return sendOne(url, { atMs: performance.now() - startMs, body }, index, startMs, { timeoutMs });
  };
  const pairs = keystrokes.slice(0, -1).flatMap((first, i) => (i % STRIDE === 0 ? [[first, keystrokes[i + 1]!]] : []));
  const warmed: ClientRecord[] = [];
  const completed: ClientRecord[] = [];
  for (const [i, [first, second]] of pairs.entries()) {
    const ways = [
      { before: 0, records: warmed },
      { before: OUTPUT_TOKENS, records: completed },
    ];
    for (const { before, records } of i % 2 === 0 ? ways : ways.reverse()) {
      const salt = randomUUID();
      await ask(first!, salt, before, i);
      records.push(await ask(second!, salt, OUTPUT_TOKENS, i));
    }
  }
  return { deployment, context, promptOrder, ...compared(warmed, completed) };
}

/** @param warmed first tokens after a warm-up, and `completed` those after a completion, pair by pair. */
function compared(warmed: readonly ClientRecord[], completed: readonly ClientRecord[]) {
  const isAnswered = ({ outcome, chunksMs }: ClientRecord) => outcome === 'ok' && chunksMs.length > 0;
  const pairs = warmed.flatMap((record, i) => {
    const other = completed[i]!;
    return isAnswered(record) && isAnswered(other) ? [{ record, other }] : [];
  });
  const middle = (of: (pair: (typeof pairs)[number]) => number) => median(pairs.map(of));
  const ratios = pairs.map(({ record, other }) => ttft(record) / ttft(other));
  const computed = ({ promptTokens, cachedTokens }: ClientRecord) => promptTokens - cachedTokens;
  return {
    pairs: pairs.length,
    failed: warmed.length - pairs.length,
    warmedMs: middle(({ record }) => ttft(record)),
    completedMs: middle(({ other }) => ttft(other)),
    ratio: median(ratios),
    ratioInterval: medianInterval(ratios),
    warmedTokens: middle(({ record }) => computed(record)),
    completedTokens: middle(({ other }) => computed(other)),
    records: pairs.map(({ record, other }) => ({ warmed: record, completed: other })),
  };
}
