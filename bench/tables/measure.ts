/**
 * `bench tables` repeats the paper's tables. Both systems run at once on the same cores, with one request at a time. A
 * round measures every cell once in a seeded random order, so that disturbances by other programs fall on all cells
 * alike. The text of the chunks and their soft tokens are requested at the same cursor, one right after the other.
 */
import { ServingError } from '../../services/lib/process/errors.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { type ClientRecord, tpot, ttft } from '../measure/latency.ts';
import { sendOne } from '../measure/load-client.ts';
import type { Interval } from '../measure/statistics.ts';
import { SOFT_TOKENS } from '../system/context.ts';
import type { Deployment } from '../system/deployment.ts';
import type { PromptMaker } from '../system/prompts.ts';
import { LENGTHS, LINE_TOKENS, tokensCut } from './paper.ts';

const REGIMES = { line: LINE_TOKENS, 'one-token': 1 } as const;
type Regime = keyof typeof REGIMES;

/** One cell of a table in one round: the same cursor, once with its context as text and once as soft tokens. */
export interface Pair {
  readonly model: string;
  readonly mode: Deployment['mode'];
  readonly regime: Regime;
  /** Index into LENGTHS. */
  readonly length: number;
  readonly round: number;
  readonly text: ClientRecord;
  readonly soft: ClientRecord;
}

export interface TablesResult {
  readonly pairs: readonly Pair[];
}

interface TableOptions {
  readonly model: string;
  readonly systems: readonly { readonly mode: Deployment['mode']; readonly url: string }[];
  readonly prompts: PromptMaker;
  readonly rounds: number;
  /** No further round begins if it would end later than this, judging by the duration of the last one. */
  readonly budgetMs: number;
  readonly timeoutMs: number;
  readonly seed: number;
  /** Told before each cell; what it throws ends the measurement. */
  readonly onProgress: (text: string) => void;
  readonly onPair?: (pair: Pair) => void;
}

/** Measures at least one round, whatever the budget. */
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
  // The first pair of each system is not counted: it touches memory, warms caches and loads the index.
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
      const pair = await measure(cell, round);
      pairs.push(pair);
      options.onPair?.(pair);
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
): Promise<ClientRecord> {
  const lengths = LENGTHS[length]!;
  const tokens = lengths[variant];
  // Both prompts have the same code around the cursor, so the text takes what the lengths differ by and ten tokens
  // more.
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

/** @throws ServingError internal if the server counted other tokens than the row claims. */
function assertRecord(
  record: ClientRecord,
  want: { readonly tokens: number; readonly softTokens: number; readonly output: number },
): void {
  const { outcome, code, promptTokens, softTokens, cachedTokens, outputTokens } = record;
  const got = `${promptTokens} prompt tokens (${softTokens} soft, ${cachedTokens} cached), ${outputTokens} output tokens`;
  if (outcome !== 'ok') throw new ServingError('internal', `a request of the tables failed: ${code}`);
  const prompted = promptTokens === want.tokens && softTokens === want.softTokens && cachedTokens === 0;
  if (prompted && outputTokens === want.output) return;
  throw new ServingError(
    'internal',
    `the tables need ${want.tokens} prompt tokens (${want.softTokens} soft, 0 cached) and ${want.output} output tokens, ` +
      `but the server counted ${got}`,
  );
}

export const reductionOf = (before: number, after: number) => 1 - after / before;

/** TTFT or TPOT of both sides of a pair; undefined if one of them has none. */
export function figuresOf(pair: Pair, metric: 'ttft' | 'tpot'): { text: number; soft: number } | undefined {
  const of = (record: ClientRecord) => (metric === 'ttft' ? ttft(record) : tpot(record));
  const [text, soft] = [of(pair.text), of(pair.soft)];
  return text === undefined || soft === undefined ? undefined : { text, soft };
}

/** An interval that covers the median with a lower probability says little: this one needs five rounds. */
const CERTAIN = 0.9;

/** Says whether TTFT falls by at least the share of tokens cut, judging by the interval of the median reduction. */
export function verdict({ low, high, coverage }: Interval, middle: number, length: number): string {
  const share = tokensCut(LENGTHS[length]!);
  const certain = coverage >= CERTAIN && (low >= share || high < share);
  return `${middle >= share ? 'yes' : 'no'}${certain ? '' : ' (uncertain)'}`;
}
