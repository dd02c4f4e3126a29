/** `bench drills`: one drill after the other on one running system under open-loop load. */
import { mkdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import { parseRedisUrl } from '../../services/lib/rag/redis-url.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { type BenchModel, runCli } from '../system/model.ts';
import { PromptMaker } from '../system/prompts.ts';
import { withJumpingClocks } from './clock-jumps.ts';
import { DRILLS, watch } from './drills.ts';
import { Fleet } from './fleet.ts';
import { Link } from './link.ts';
import type { Drill, Scene } from './scene.ts';
import { makeReferences, type Reference, type StreamRecord, sendTraffic } from './streams.ts';

export interface DrillOptions {
  /** Repository that prompts and chunks come from. */
  readonly path: string;
  readonly repo: string;
  readonly data: string;
  /** Disturbances of one kind. */
  readonly count: number;
  /** Requests per second. */
  readonly rate: number;
  /** How long a lasting disturbance lasts. */
  readonly seconds: number;
  readonly seed: number;
  /** Words, one of which the name of a drill holds; all when empty. */
  readonly only: readonly string[];
  /** Store to use instead of LMDB; it is written to. */
  readonly redis?: string;
  readonly onProgress: (text: string) => void;
}

export interface DrillResult {
  readonly name: string;
  readonly disturbances: number;
  readonly sent: number;
  readonly ok: number;
  readonly left: number;
  /** By code. */
  readonly failed: Readonly<Record<string, number>>;
  readonly lostTokens: number;
  readonly doubledTokens: number;
  /** The longest time from a disturbance to the first token of a request that was sent after it and ended well. */
  readonly recoveryMs: number | undefined;
  /** Longest wait of a client for the first token of a stream that ended well. */
  readonly worstTtftMs: number;
  /** Between two tokens of a stream that ended well. */
  readonly longestGapMs: number;
  readonly note: string;
  /** What is not as promised, in words; '' when all is. */
  readonly broken: string;
}

export interface DrillsResult {
  readonly drills: readonly DrillResult[];
}

const REFERENCES = 8;

export async function runDrills(model: BenchModel, options: DrillOptions): Promise<DrillResult[]> {
  const { data, redis, onProgress, only } = options;
  await mkdir(data, { recursive: true });
  const storeLink = redis === undefined ? undefined : await linkTo(redis);
  const store = storeLink ? storeLink.url : `lmdb:${resolve(data, 'drill-store')}`;
  const wanted = (name: string) => only.length === 0 || only.some((word) => name.includes(word));
  onProgress('indexing');
  const { bundle } = model;
  await runCli(['index', '--name', options.repo, '--path', options.path, '--model', bundle, '--store', store]);
  const prompts = await PromptMaker.load(options.repo, options.path, model.tokenizer);
  const fleetOptions = { bundle, store, data, workers: 2 };
  const scene = { storeLink: storeLink?.link, store, bundle, count: options.count, seconds: options.seconds };
  try {
    onProgress('starting');
    const results: DrillResult[] = [];
    const fleet = await Fleet.start(fleetOptions);
    let references: Reference[];
    try {
      references = await makeReferences(fleet.url, prompts, REFERENCES);
      for (const drill of DRILLS.filter(({ name }) => wanted(name))) {
        onProgress(drill.name);
        results.push(await runDrill(drill, fleet, references, scene, options));
      }
    } finally {
      await fleet.close();
    }
    if (wanted(CLOCKS.name)) {
      onProgress(CLOCKS.name);
      const jumping = await withJumpingClocks(() => Fleet.start(fleetOptions));
      try {
        results.push(await runDrill(CLOCKS, jumping, references, scene, options));
      } finally {
        await jumping.close();
      }
    }
    return results;
  } finally {
    storeLink?.link.close();
  }
}

/** All clocks of the day jump by an hour, to and fro, twice a second. */
const CLOCKS: Drill = { name: 'clocks that jump', disturb: watch };

async function runDrill(
  drill: Drill,
  fleet: Fleet,
  references: readonly Reference[],
  scene: Pick<Scene, 'storeLink' | 'store' | 'bundle' | 'count' | 'seconds'>,
  { rate, seed }: DrillOptions,
): Promise<DrillResult> {
  const impossible = drill.impossible?.(scene);
  if (impossible !== undefined) return { ...judge(drill, [], [], ''), note: `not run: ${impossible}` };
  const startMs = performance.now();
  const marks: number[] = [];
  const mark = () => void marks.push(performance.now() - startMs);
  const over = new AbortController();
  const traffic = sendTraffic(
    () => fleet.url,
    references,
    { rate, seed, leaving: drill.leaving },
    startMs,
    over.signal,
  );
  let [note, broken] = ['', ''];
  try {
    note = (await drill.disturb({ ...scene, fleet, references, random: new RandomStream(seed + 7), mark })) ?? '';
  } catch (error) {
    broken = ServingError.from(error).message;
  }
  over.abort();
  const records = await traffic;
  const remains = await fleet.settle();
  const result = judge(drill, records, marks, [broken, remains].filter((text) => text !== '').join('; '));
  return { ...result, note };
}

export function judge(
  drill: Pick<Drill, 'name'> & Partial<Pick<Drill, 'mayFail'>>,
  records: readonly StreamRecord[],
  marks: readonly number[],
  broken: string,
): DrillResult {
  const ok = records.filter(({ outcome }) => outcome === 'ok');
  const failed: Record<string, number> = {};
  for (const { code } of records) if (code !== undefined) failed[code] = (failed[code] ?? 0) + 1;
  const total = (of: (record: StreamRecord) => number) => records.reduce((sum, record) => sum + of(record), 0);
  const [lostTokens, doubledTokens] = [total(({ lost }) => lost), total(({ doubled }) => doubled)];
  const recoveries = marks.flatMap((atMs) => {
    const next = ok.filter(({ sentMs }) => sentMs >= atMs).map(({ firstMs }) => (firstMs ?? Infinity) - atMs);
    return next.length === 0 ? [] : [Math.min(...next)];
  });
  const problems = [
    broken,
    lostTokens > 0 ? `${lostTokens} tokens lost` : '',
    doubledTokens > 0 ? `${doubledTokens} tokens doubled` : '',
    !drill.mayFail && Object.keys(failed).length > 0 ? 'requests failed' : '',
  ];
  return {
    name: drill.name,
    disturbances: marks.length,
    sent: records.length,
    ok: ok.length,
    left: records.filter(({ outcome }) => outcome === 'left').length,
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

/** @returns the same Redis behind a link. */
async function linkTo(redis: string): Promise<{ link: Link; url: string }> {
  const { kind, tls, nodes, db } = parseRedisUrl(redis);
  if (kind !== 'single' || tls) throw new ServingError('config_invalid', 'drills take a single Redis without TLS');
  const link = await Link.open();
  link.target = `${nodes[0]!.host}:${nodes[0]!.port}`;
  const login = /^redis:\/\/([^@/]*@)?/.exec(redis)?.[1] ?? '';
  return { link, url: `redis://${login}${link.address}/${db}` };
}
