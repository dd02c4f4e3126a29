/**
 * `bench tables`: the paper's tables again. Both systems are up at once on the same cores and one request runs at a time;
 * a round measures every cell once in a seeded random order, so that whatever else the machine does falls on all alike.
 * The text of the chunks and their soft tokens are asked for at the same cursor, one right after the other.
 */

import { ServingError } from '../../services/lib/process/errors.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { type RequestRecord, tpot, ttft } from '../measure/latency.ts';
import { sendOne } from '../measure/load-client.ts';
import type { Interval } from '../measure/statistics.ts';
import { type PromptMaker, SOFT_TOKENS } from '../system/prompts.ts';
import type { Mode } from '../system/system.ts';
import { LENGTHS, LINE_TOKENS, tokensCut } from './paper.ts';

export const REGIMES = { line: LINE_TOKENS, 'one-token': 1 } as const;
export type Regime = keyof typeof REGIMES;

/** One cell of a table in one round: the same cursor with its context as text and as soft tokens. */
export interface Pair {
  readonly model: string;
  readonly mode: Mode;
  readonly regime: Regime;
  /** Index into LENGTHS. */
  readonly length: number;
  readonly round: number;
  readonly text: RequestRecord;
  readonly soft: RequestRecord;
}

export interface TablesResult {
  readonly pairs: readonly Pair[];
}

export interface TableOptions {
  readonly model: string;
  readonly systems: readonly { readonly mode: Mode; readonly url: string }[];
  readonly prompts: PromptMaker;
  readonly rounds: number;
  /** No further round begins that would, going by the last one, end after so long. */
  readonly budgetMs: number;
  readonly timeoutMs: number;
  readonly seed: number;
  readonly onProgress: (text: string) => void;
}

/** At least one round whatever the budget. */
export async function measureTables(options: TableOptions): Promise<Pair[]> {
  const cells = options.systems.flatMap(({ mode, url }) =>
    LENGTHS.flatMap((_, length) =>
      (Object.keys(REGIMES) as Regime[]).map((regime) => ({ model: options.model, mode, url, length, regime })),
    ),
  );
  const random = new RandomStream(options.seed);
  const pairs: Pair[] = [];
  const startMs = performance.now();
  let cursor = options.seed;
  const measure = async (cell: (typeof cells)[number], round: number) => {
    cursor++;
    const variants = random.shuffled(['text', 'soft'] as const);
    const first = await ask(options, cell, variants[0]!, cursor, startMs);
    const second = await ask(options, cell, variants[1]!, cursor, startMs);
    const [text, soft] = variants[0] === 'text' ? [first, second] : [second, first];
    return { model: cell.model, mode: cell.mode, regime: cell.regime, length: cell.length, round, text, soft };
  };
  // Memory is touched, caches are warm and the index is loaded before anything counts.
  for (const { mode } of options.systems) {
    options.onProgress(`${options.model}: warming up ${mode}`);
    await measure(cells.find((cell) => cell.mode === mode)!, -1);
  }
  for (let round = 0, lastMs = 0; round < options.rounds; round++) {
    const roundStartMs = performance.now();
    if (round > 0 && roundStartMs + lastMs - startMs > options.budgetMs) break;
    for (const [i, cell] of random.shuffled(cells).entries()) {
      options.onProgress(
        `${options.model}: round ${round + 1} of ${options.rounds}, ${i + 1} of ${cells.length} cells`,
      );
      pairs.push(await measure(cell, round));
    }
    lastMs = performance.now() - roundStartMs;
  }
  return pairs;
}

async function ask(
  { prompts, timeoutMs }: TableOptions,
  { url, length, regime }: { url: string; length: number; regime: Regime },
  variant: 'text' | 'soft',
  cursor: number,
  startMs: number,
): Promise<RequestRecord> {
  const lengths = LENGTHS[length]!;
  const tokens = lengths[variant];
  // The code around the cursor is the same: the text of the chunks takes what the prompts differ by, and ten more.
  const contextTokens = variant === 'soft' ? SOFT_TOKENS : lengths.text - lengths.soft + SOFT_TOKENS;
  const context = variant === 'soft' ? ('compressed' as const) : ('text' as const);
  const body = {
    ...prompts.make(cursor, { tokens, context, contextTokens }),
    max_tokens: REGIMES[regime],
    temperature: 0,
    ignore_eos: true,
  };
  const atMs = performance.now() - startMs;
  const record = await sendOne(url, { atMs, body }, cursor, startMs, { timeoutMs });
  assertRecord(record, { tokens, softTokens: variant === 'soft' ? SOFT_TOKENS : 0, output: REGIMES[regime] });
  return record;
}

/** A row is what it says or there is no row. */
function assertRecord(
  record: RequestRecord,
  want: { readonly tokens: number; readonly softTokens: number; readonly output: number },
): void {
  const { outcome, code, promptTokens, softTokens, cachedTokens, outputTokens } = record;
  const got = `${promptTokens} prompt tokens (${softTokens} soft, ${cachedTokens} cached), ${outputTokens} output tokens`;
  if (outcome !== 'ok') throw new ServingError('internal', `a request of the tables failed: ${code}`);
  if (
    promptTokens === want.tokens &&
    softTokens === want.softTokens &&
    outputTokens === want.output &&
    cachedTokens === 0
  )
    return;
  throw new ServingError(
    'internal',
    `the tables need ${want.tokens} prompt tokens (${want.softTokens} soft, 0 cached) and ${want.output} output tokens; the server counted ${got}`,
  );
}

export const reductionOf = (before: number, after: number) => 1 - after / before;

/** TTFT or TPOT of both sides of a pair; undefined where there is none. */
export function figuresOf(pair: Pair, metric: 'ttft' | 'tpot'): { text: number; soft: number } | undefined {
  const of = (record: RequestRecord) => (metric === 'ttft' ? ttft(record) : tpot(record));
  const [text, soft] = [of(pair.text), of(pair.soft)];
  return text === undefined || soft === undefined ? undefined : { text, soft };
}

/** An interval that covers the median with less than this says little: five rounds are needed. */
const CERTAIN = 0.9;

/** Whether TTFT falls by at least the share of tokens cut, going by the interval of the median reduction. */
export function verdict({ low, high, coverage }: Interval, middle: number, length: number): string {
  const share = tokensCut(LENGTHS[length]!);
  const certain = coverage >= CERTAIN && (low >= share || high < share);
  return `${middle >= share ? 'yes' : 'no'}${certain ? '' : ' (uncertain)'}`;
}
