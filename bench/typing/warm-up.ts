/**
 * What a warm-up is worth: the first token of a keystroke before which its prompt was computed and kept by a request
 * for no output (`max_tokens: 0`, which is `n_predict: 0` of llama.cpp's clients), against that of a keystroke that
 * comes after a completion of the same session. Both reuse the same prefix, so both should take as long. The two are
 * measured in turns, in changing order, and nothing is shared between two measurements.
 */
import { randomUUID } from 'node:crypto';
import { type ClientRecord, ttft } from '../measure/latency.ts';
import { median } from '../measure/statistics.ts';
import { answeredInAll, asking, OUTPUT_TOKENS, type PairOptions, pairsOf, ttftRatio } from './keystroke-pairs.ts';
import type { WarmUpRun } from './measure.ts';
import type { Session } from './session.ts';

export async function measureWarmUps(
  url: string,
  deployment: string,
  session: Session,
  options: PairOptions,
): Promise<WarmUpRun> {
  const ask = asking(url, session, options);
  const warmed: ClientRecord[] = [];
  const completed: ClientRecord[] = [];
  for (const [i, [first, second]] of pairsOf(session).entries()) {
    const ways = [
      { before: 0, records: warmed },
      { before: OUTPUT_TOKENS, records: completed },
    ];
    for (const { before, records } of i % 2 === 0 ? ways : ways.reverse()) {
      const salt = randomUUID();
      await ask(first, salt, i, before);
      records.push(await ask(second, salt, i));
    }
  }
  const { context, promptOrder } = options;
  return { deployment, context, promptOrder, ...compared({ warmed, completed }) };
}

/** @param records first tokens after a warm-up and those after a completion, pair by pair. */
function compared(records: Readonly<Record<'warmed' | 'completed', readonly ClientRecord[]>>) {
  const pairs = answeredInAll(records);
  const middle = (of: (pair: (typeof pairs)[number]) => number) => median(pairs.map(of));
  const computed = ({ promptTokens, cachedTokens }: ClientRecord) => promptTokens - cachedTokens;
  return {
    pairs: pairs.length,
    failed: records.warmed.length - pairs.length,
    warmedMs: middle(({ warmed }) => ttft(warmed)),
    completedMs: middle(({ completed }) => ttft(completed)),
    ...ttftRatio(pairs, 'warmed', 'completed'),
    warmedTokens: middle(({ warmed }) => computed(warmed)),
    completedTokens: middle(({ completed }) => computed(completed)),
    records: pairs,
  };
}
