/**
 * Compares how long honest requests wait for their first token with and without attackers. A worker that is killed or
 * restarted makes requests wait as well, because they are replayed and its share of the work falls to the others: so
 * requests that waited while a worker was away are counted by themselves, and not compared. When it is back its cache
 * is empty, so both sides of the comparison are times in which workers are struck.
 */
import { type Estimate, estimateOfCorpus } from '../../training/metrics/intervals.ts';
import { type Percentiles, percentiles } from '../measure/latency.ts';
import { quantile } from '../measure/statistics.ts';
import type { StreamRecord } from './streams.ts';

/** Times in ms from the start of the run. */
export interface Span {
  readonly fromMs: number;
  readonly toMs: number;
}

/** An attack of one tenant, and its time. */
export interface AttackTurn extends Span {
  readonly attack: string;
}

interface Waits extends Percentiles {
  readonly count: number;
}

/** The parts of a run before the attacks. */
export interface Phases {
  /** Nobody attacks, and nothing is struck. */
  readonly undisturbed: Span;
  /** Nobody attacks, and workers are struck. It begins where the other one ends; the attacks begin at its end. */
  readonly calm: Span;
}

export interface WaitComparison {
  /** TTFT in ms while nobody attacks and nothing is struck. */
  readonly undisturbed: Waits;
  /** TTFT in ms while nobody attacks, without those that are struck. */
  readonly calm: Waits;
  /** TTFT in ms of the requests after that, except for those that are struck. */
  readonly attacked: Waits;
  /** TTFT in ms of requests that waited while a worker was away. */
  readonly struck: Waits;
  /**
   * p99 of `attacked` over that of `calm`, and its 95 % interval by a bootstrap over requests; undefined where one of
   * them has none. Requests that wait for the same cause count as independent ones, so the interval is rather narrow.
   */
  readonly rise?: Estimate | undefined;
  /** Those of `attacked`, by the attacks that went on meanwhile: a request counts for each of them. */
  readonly byAttack: Readonly<Record<string, Waits>>;
}

/** Most that p99 of TTFT may rise by beside attackers. */
export const MOST_RISE = 1.5;
/** With this many requests p99 rests on three of them; with fewer it is the luck of one. An hour has 1,000 of each. */
export const JUDGED_FROM_COUNT = 300;

/**
 * @param phases what comes before the attacks. Requests before the undisturbed part do not count.
 * @param strikes times in which a worker was away.
 * @param turns attacks after the calm time.
 */
export function compareWaits(
  records: readonly StreamRecord[],
  { undisturbed, calm }: Phases,
  strikes: readonly Span[],
  turns: readonly AttackTurn[],
): WaitComparison {
  const groups = {
    undisturbed: [] as number[],
    calm: [] as number[],
    attacked: [] as number[],
    struck: [] as number[],
  };
  const phaseAt = (ms: number) => (ms < undisturbed.toMs ? 'undisturbed' : ms < calm.toMs ? 'calm' : 'attacked');
  const ofAttacks = new Map(turns.map(({ attack }) => [attack, [] as number[]]));
  for (const { outcome, sentMs, firstMs } of records) {
    if (outcome !== 'ok' || firstMs === undefined || sentMs < undisturbed.fromMs) continue;
    const during = ({ fromMs, toMs }: Span) => sentMs < toMs && firstMs > fromMs;
    const struck = strikes.some(during);
    // A request on a border belongs to neither side.
    if (!struck && phaseAt(sentMs) !== phaseAt(firstMs)) continue;
    const group = struck ? 'struck' : phaseAt(sentMs);
    groups[group].push(firstMs - sentMs);
    if (group !== 'attacked') continue;
    const attacks = new Set(turns.filter(during).map(({ attack }) => attack));
    for (const attack of attacks) ofAttacks.get(attack)!.push(firstMs - sentMs);
  }
  const waits = (of: readonly number[]): Waits => ({ count: of.length, ...percentiles(of) });
  const byAttack = Object.fromEntries([...ofAttacks].map(([attack, of]) => [attack, waits(of)]));
  return {
    ...{ undisturbed: waits(groups.undisturbed), calm: waits(groups.calm) },
    ...{ attacked: waits(groups.attacked), struck: waits(groups.struck), byAttack },
    rise: riseOf(groups.calm, groups.attacked),
  };
}

function riseOf(calm: readonly number[], attacked: readonly number[]): Estimate | undefined {
  if (calm.length === 0 || attacked.length === 0) return undefined;
  const all = [...calm.map((ms) => ({ ms, isCalm: true })), ...attacked.map((ms) => ({ ms, isCalm: false }))];
  const p99 = (of: readonly (typeof all)[number][], ofCalm: boolean) => {
    const waits = of.filter(({ isCalm }) => isCalm === ofCalm).map(({ ms }) => ms);
    return quantile(waits, 0.99);
  };
  return estimateOfCorpus(all, (of) => p99(of, false) / p99(of, true));
}

/** Whether there are enough requests to compare. */
export const canCompare = ({ calm, attacked }: Pick<WaitComparison, 'calm' | 'attacked'>) =>
  Math.min(calm.count, attacked.count) >= JUDGED_FROM_COUNT;

type Rise = Pick<WaitComparison, 'calm' | 'attacked' | 'rise'>;

/** How many times as long p99 is beside attackers, in words, with its interval if there is one. */
export function riseInWords({ calm, attacked, rise }: Rise): string {
  const times = (attacked.p99 / calm.p99).toFixed(2);
  return rise ? `${times} (95 %: ${rise.low.toFixed(2)} to ${rise.high.toFixed(2)})` : times;
}

/** @returns the broken promise; '' if it is kept, or cannot be judged. */
export function judgeWaits(waits: Rise): string {
  if (!canCompare(waits) || waits.attacked.p99 / waits.calm.p99 <= MOST_RISE) return '';
  return `TTFT p99 beside attackers is ${riseInWords(waits)} times that of the calm time, more than ${MOST_RISE}`;
}
