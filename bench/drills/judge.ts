/** Judges a drill by what its clients saw: was any of the system's promises broken? */
import type { Drill } from './scene.ts';
import type { StreamRecord } from './streams.ts';

/** What became of the requests of a drill or a soak. */
export interface Outcome {
  readonly sent: number;
  readonly ok: number;
  readonly left: number;
  /** Number of failures by error code. */
  readonly failed: Readonly<Record<string, number>>;
  readonly lostTokens: number;
  readonly doubledTokens: number;
  /** Each broken promise, in words; '' if none was broken. */
  readonly broken: string;
}

export interface DrillResult extends Outcome {
  readonly name: string;
  readonly disturbances: number;
  /** Longest time from a disturbance to the first token of a request that was sent after it and ended well. */
  readonly recoveryMs: number | undefined;
  /** Longest TTFT of the streams that ended well. */
  readonly worstTtftMs: number;
  /** Longest time between two tokens of the streams that ended well. */
  readonly longestGapMs: number;
  readonly note: string;
}

export interface DrillsResult {
  readonly drills: readonly DrillResult[];
}

/** A disturbance. Times are in ms from the start of the drill. */
export interface Mark {
  readonly atMs: number;
  /** Time at which the system was whole again, for drills that look for it. */
  mendedMs?: number;
}

/** Least share of clients that must have left in a drill in which clients leave. */
const LEFT_AT_LEAST = 1 / 3;
/** Share of requests that may lose their context where they must keep it: a busy machine is late now and then. */
const LOSING_CONTEXT = 0.1;

export const notRun = (drill: Drill, why: string): DrillResult => ({
  ...judge(drill, [], [], ''),
  note: `not run: ${why}`,
});

export function judge(
  drill: Pick<Drill, 'name' | 'mayFail' | 'mayFailWith' | 'leaving' | 'ttftWithinMs' | 'keepsContext'>,
  records: readonly StreamRecord[],
  marks: readonly Mark[],
  broken: string,
): DrillResult {
  const ok = records.filter(({ outcome }) => outcome === 'ok');
  const failed: Record<string, number> = {};
  for (const { code } of records) if (code !== undefined) failed[code] = (failed[code] ?? 0) + 1;
  const total = (of: (record: StreamRecord) => number) => records.reduce((sum, record) => sum + of(record), 0);
  const [lostTokens, doubledTokens] = [total(({ lost }) => lost), total(({ doubled }) => doubled)];
  const recoveries = marks.flatMap(({ atMs }) => {
    const next = ok.filter(({ sentMs }) => sentMs >= atMs).map(({ firstMs }) => (firstMs ?? Infinity) - atMs);
    return next.length === 0 ? [] : [Math.min(...next)];
  });
  const left = records.filter(({ outcome }) => outcome === 'left').length;
  const mayFail = (record: StreamRecord) =>
    (drill.mayFail && diedWithGateway(record, marks)) || wasStruck(record, marks, drill.mayFailWith);
  const unexplained = records.filter((record) => record.outcome === 'failed' && !mayFail(record));
  const last = marks.at(-1);
  const lastMs = last?.mendedMs ?? last?.atMs ?? -Infinity;
  const worstTtftMs = Math.max(0, ...ok.map(({ firstMs, sentMs }) => (firstMs ?? sentMs) - sentMs));
  const degraded = ok.filter((record) => record.degraded).length;
  const problems = [
    broken,
    lostTokens > 0 ? `${lostTokens} tokens lost` : '',
    doubledTokens > 0 ? `${doubledTokens} tokens doubled` : '',
    unexplained.length > 0 ? `${unexplained.length} requests failed` : '',
    last && !ok.some(({ sentMs }) => sentMs >= lastMs) ? 'no request was answered after the last disturbance' : '',
    drill.ttftWithinMs !== undefined && worstTtftMs > drill.ttftWithinMs
      ? `a request waited ${worstTtftMs.toFixed(0)} ms for its first token, more than ${drill.ttftWithinMs}`
      : '',
    drill.keepsContext && degraded > ok.length * LOSING_CONTEXT
      ? `${degraded} of ${ok.length} answers lost their context`
      : '',
    drill.leaving && left < records.length * LEFT_AT_LEAST ? `only ${left} of ${records.length} clients left` : '',
  ];
  return {
    name: drill.name,
    disturbances: marks.length,
    sent: records.length,
    ok: ok.length,
    left,
    failed,
    lostTokens,
    doubledTokens,
    recoveryMs: recoveries.length === 0 ? undefined : Math.max(...recoveries),
    worstTtftMs,
    longestGapMs: Math.max(0, ...ok.map(({ longestGapMs }) => longestGapMs)),
    note: '',
    broken: problems.filter((text) => text !== '').join('; '),
  };
}

/**
 * Whether a request failed because the gateway was killed: it lost its connection then, or it came before the gateway
 * was back, which listens before its workers have answered it.
 */
const diedWithGateway = ({ code, sentMs, endedMs }: StreamRecord, marks: readonly Mark[]) =>
  marks.some(({ atMs, mendedMs = Infinity }) => {
    if (sentMs > mendedMs) return false;
    return code === 'connection' ? endedMs >= atMs : code === 'no_worker' && sentMs >= atMs;
  });

/** Whether a request failed with one of these codes, and was under way between a mark and its mending. */
const wasStruck = ({ code, sentMs, endedMs }: StreamRecord, marks: readonly Mark[], codes: Drill['mayFailWith'] = []) =>
  codes.some((each) => each === code) &&
  marks.some(({ atMs, mendedMs = Infinity }) => sentMs <= mendedMs && endedMs >= atMs);
