/** Runs one drill after the other on a running system under open-loop load, and judges what clients saw. */
import { mkdir } from 'node:fs/promises';
import { ServingError } from '../../services/lib/process/errors.ts';
import { RandomStream } from '../measure/arrivals.ts';
import type { BenchModel } from '../system/model.ts';
import { PromptMaker } from '../system/prompts.ts';
import type { DrillsOptions } from './command.ts';
import type { Drill } from './scene.ts';
import { type Ground, stagesOf } from './stages.ts';
import { makeReferences, type Reference, type StreamRecord, sendBurst, sendTraffic } from './streams.ts';

interface DrillRunOptions extends DrillsOptions {
  /** Name of the repository in the index. */
  readonly repo: string;
  readonly onProgress: (text: string) => void;
}

interface DrillResult {
  readonly name: string;
  readonly disturbances: number;
  readonly sent: number;
  readonly ok: number;
  readonly left: number;
  /** Number of failures by error code. */
  readonly failed: Readonly<Record<string, number>>;
  readonly lostTokens: number;
  readonly doubledTokens: number;
  /** Longest time from a disturbance to the first token of a request that was sent after it and ended well. */
  readonly recoveryMs: number | undefined;
  /** Longest TTFT of the streams that ended well. */
  readonly worstTtftMs: number;
  /** Longest time between two tokens of the streams that ended well. */
  readonly longestGapMs: number;
  readonly note: string;
  /** What was not as promised, in words; '' if all was. */
  readonly broken: string;
}

export interface DrillsResult {
  readonly drills: readonly DrillResult[];
}

/** A disturbance. Times are in ms from the start of the drill. */
interface Mark {
  readonly atMs: number;
  /** Time at which the system was whole again, for drills that look for it. */
  mendedMs?: number;
}

const REFERENCES = 8;
/** Least share of clients that must have left in a drill in which clients leave. */
const LEFT_AT_LEAST = 1 / 3;

export async function runDrills(model: BenchModel, options: DrillRunOptions): Promise<DrillResult[]> {
  const { data, onProgress, only } = options;
  await mkdir(data, { recursive: true });
  const wanted = ({ name }: Drill) => only.length === 0 || only.some((word) => name.includes(word));
  const prompts = await PromptMaker.load(options.repo, options.path, model.tokenizer);
  const results: DrillResult[] = [];
  let references: Reference[] | undefined;
  for (const stage of stagesOf(model, options)) {
    const drills = stage.drills.filter(wanted);
    // The first stage is opened in any case: before its drills, it gives the answers that all later ones must give.
    if (references && drills.length === 0) continue;
    onProgress(`starting ${stage.name}`);
    const ground = await stage.open();
    if (typeof ground === 'string') {
      results.push(...drills.map((drill) => notRun(drill, ground)));
      continue;
    }
    try {
      references ??= await makeReferences(ground.fleet.url, prompts, REFERENCES);
      for (const drill of drills) {
        onProgress(drill.name);
        results.push(await runDrill(drill, references, ground, options));
      }
    } finally {
      await ground.close();
    }
  }
  return results;
}

export const notRun = (drill: Drill, why: string): DrillResult => ({
  ...judge(drill, [], [], ''),
  note: `not run: ${why}`,
});

export async function runDrill(
  drill: Drill,
  references: readonly Reference[],
  ground: Ground,
  { rate, seed, count, seconds }: Pick<DrillsOptions, 'rate' | 'seed' | 'count' | 'seconds'>,
): Promise<DrillResult> {
  const { fleet } = ground;
  const impossible = drill.impossible?.(ground);
  if (impossible !== undefined) return notRun(drill, impossible);
  const startMs = performance.now();
  const now = () => performance.now() - startMs;
  const marks: Mark[] = [];
  const mark = () => {
    const made: Mark = { atMs: now() };
    marks.push(made);
    return () => {
      made.mendedMs = now();
    };
  };
  const sent: Promise<StreamRecord>[] = [];
  const burst = () => {
    const more = sendBurst(fleet.url, references, startMs);
    sent.push(...more);
    return Promise.all(more);
  };
  const over = new AbortController();
  const shape = { rate, seed, leaving: drill.leaving };
  const traffic = sendTraffic(() => fleet.url, references, shape, startMs, over.signal);
  let [note, broken] = ['', ''];
  try {
    const random = new RandomStream(seed + 7);
    note = (await drill.disturb({ ...ground, count, seconds, references, random, mark, burst })) ?? '';
  } catch (error) {
    broken = ServingError.from(error).message;
  }
  over.abort();
  // Requests after the last disturbance must be answered.
  if (marks.length > 0) await burst();
  const records = [...(await traffic), ...(await Promise.all(sent))];
  const remains = await fleet.settle();
  const result = judge(drill, records, marks, [broken, remains].filter((text) => text !== '').join('; '));
  const degraded = records.filter((record) => record.degraded).length;
  const without = degraded > 0 ? `${degraded} answered without context` : '';
  return { ...result, note: [note, without].filter((text) => text !== '').join('; ') };
}

export function judge(
  drill: Pick<Drill, 'name' | 'mayFail' | 'leaving'>,
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
  const unexplained = records.filter(
    (record) => record.outcome === 'failed' && !(drill.mayFail && diedWithGateway(record, marks)),
  );
  const last = marks.at(-1);
  const lastMs = last?.mendedMs ?? last?.atMs ?? -Infinity;
  const problems = [
    broken,
    lostTokens > 0 ? `${lostTokens} tokens lost` : '',
    doubledTokens > 0 ? `${doubledTokens} tokens doubled` : '',
    unexplained.length > 0 ? `${unexplained.length} requests failed` : '',
    last && !ok.some(({ sentMs }) => sentMs >= lastMs) ? 'no request was answered after the last disturbance' : '',
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
    worstTtftMs: Math.max(0, ...ok.map(({ firstMs, sentMs }) => (firstMs ?? sentMs) - sentMs)),
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
