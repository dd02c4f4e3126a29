/** Keystrokes that follow each other, as benches of what a prompt leaves behind send them. */
import { type ClientRecord, ttft } from '../measure/latency.ts';
import { sendOne } from '../measure/load-client.ts';
import { median, medianInterval } from '../measure/statistics.ts';
import type { ReplayOptions, Variant } from './measure.ts';
import type { Keystroke, Session } from './session.ts';

/** Keystrokes of the session from one pair to the next: neighbours tell the same. */
const STRIDE = 8;
/** Output tokens of the keystrokes: the second one shows that the answer goes on. */
export const OUTPUT_TOKENS = 2;

export type PairOptions = Pick<ReplayOptions & Variant, 'repo' | 'context' | 'promptOrder' | 'timeoutMs'>;

export const pairsOf = ({ keystrokes }: Session): readonly (readonly [Keystroke, Keystroke])[] =>
  keystrokes.slice(0, -1).flatMap((first, i) => (i % STRIDE === 0 ? [[first, keystrokes[i + 1]!] as const] : []));

/** Sends one keystroke. @param salt keystrokes with another one share nothing. @param index number of its pair. */
type Ask = (key: Keystroke, salt: string, index: number, maxTokens?: number) => Promise<ClientRecord>;

export function asking(url: string, { path }: Session, { repo, context, timeoutMs }: PairOptions): Ask {
  const startMs = performance.now();
  return (key, salt, index, maxTokens = OUTPUT_TOKENS) => {
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
}

/**
 * What was measured in several ways, keystroke by keystroke.
 * @returns the records of those keystrokes that were answered in every way.
 */
export function answeredInAll<Way extends string>(records: Readonly<Record<Way, readonly ClientRecord[]>>) {
  const ways = Object.keys(records) as Way[];
  const isAnswered = ({ outcome, chunksMs }: ClientRecord) => outcome === 'ok' && chunksMs.length > 0;
  return records[ways[0]!].flatMap((_, i) => {
    const each = ways.map((way) => [way, records[way][i]!] as const);
    return each.every(([, record]) => isAnswered(record))
      ? [Object.fromEntries(each) as Record<Way, ClientRecord>]
      : [];
  });
}

/** Median of TTFT in one way by that in another, within keystrokes, with its 95 % interval. */
export function ttftRatio<Way extends string>(
  trials: readonly Readonly<Record<Way, ClientRecord>>[],
  way: Way,
  other: Way,
) {
  const ratios = trials.map((trial) => ttft(trial[way]) / ttft(trial[other]));
  return { ratio: median(ratios), ratioInterval: medianInterval(ratios) };
}
