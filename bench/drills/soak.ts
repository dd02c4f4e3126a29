/**
 * `bench soak`: hours of a mix of load, with workers that are restarted and workers that are killed. The
 * gateway and the first worker of each pool live through it, and are what is watched.
 */
import { mkdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { RandomStream } from '../measure/arrivals.ts';
import { type BenchModel, runCli } from '../system/model.ts';
import { PromptMaker } from '../system/prompts.ts';
import { Fleet, type Member, type Vitals } from './fleet.ts';
import { judge } from './judge.ts';
import { KINDS, type Kind, makeMix, sendMix } from './mix.ts';
import { fitFloor, JUDGED_FROM_MS, type Slope } from './slope.ts';
import { type Difference, makeReferences, type StreamRecord } from './streams.ts';

export interface SoakOptions {
  readonly path: string;
  readonly repo: string;
  readonly data: string;
  readonly minutes: number;
  /** Requests per second. */
  readonly rate: number;
  readonly restartEverySeconds: number;
  readonly seed: number;
  readonly onProgress: (text: string) => void;
}

export interface ProcessTrend {
  readonly name: string;
  readonly samples: number;
  /** Of the floor, per hour; the first third of the time, in which heaps fill, does not count. */
  readonly rssBytes: Slope;
  /** What lives in the heap, which is the floor of what it holds: memory that is not given back grows here first. */
  readonly heapBytes: Slope;
  readonly openFiles: Slope;
  /** The most that was staged at once, and what is left at the end. */
  readonly stagedPeakBytes: number;
  readonly stagedLeftBytes: number;
  /** In words; '' when nothing grows. */
  readonly grows: string;
}

export interface MixCounts {
  readonly sent: number;
  readonly ok: number;
  /** By their clients, or for a newer request of the same session. */
  readonly left: number;
}

export interface SoakResult {
  readonly minutes: number;
  readonly sent: number;
  readonly ok: number;
  readonly left: number;
  readonly failed: Readonly<Record<string, number>>;
  readonly lostTokens: number;
  readonly doubledTokens: number;
  /** By kind: what it was made of. */
  readonly mix: Readonly<Record<Kind, MixCounts>>;
  readonly restarts: number;
  readonly kills: number;
  readonly trends: readonly ProcessTrend[];
  readonly broken: string;
  /** Streams that ended well with other tokens than they should. */
  readonly differences: readonly (Difference & { readonly kind: Kind; readonly sentMs: number })[];
}

const SAMPLE_EVERY_MS = 2_000;
const REFERENCES = 8;
/** Growth per hour that is more than noise. */
const LIMITS = { rssBytes: 32 << 20, heapBytes: 16 << 20, openFiles: 6 };

interface Sample extends Vitals {
  readonly atMs: number;
}

export async function runSoak(model: BenchModel, options: SoakOptions): Promise<SoakResult> {
  const { data, minutes, rate, seed, onProgress } = options;
  await mkdir(data, { recursive: true });
  const store = `lmdb:${resolve(data, 'drill-store')}`;
  onProgress('starting');
  const { bundle } = model;
  await runCli(['index', '--name', options.repo, '--path', options.path, '--model', bundle, '--store', store]);
  const prompts = await PromptMaker.load(options.repo, options.path, model.tokenizer);
  const fleet = await Fleet.start({ bundle, store, data, workers: 2 });
  try {
    const references = await makeReferences(fleet.url, prompts, REFERENCES);
    const mix = await makeMix(fleet.url, options.path, references);
    const startMs = performance.now();
    const over = new AbortController();
    const watched = [...fleet.of('gateway'), fleet.of('prefill')[0]!, fleet.of('decode')[0]!, ...fleet.of('indexer')];
    const traffic = sendMix(fleet.url, mix, { rate, seed }, startMs, over.signal);
    const watching = watch(fleet, watched, startMs, over.signal);
    const disturbing = disturb(fleet, options, over.signal);
    for (const endMs = startMs + minutes * 60_000; performance.now() < endMs; await sleep(500)) {
      onProgress(`${((performance.now() - startMs) / 60_000).toFixed(1)} of ${minutes} minutes`);
    }
    over.abort();
    const [sentOf, samples, { restarts, kills }] = await Promise.all([traffic, watching, disturbing]);
    const remains = await fleet.settle();
    const trends = await Promise.all(
      watched.map(async (member) => trendOf(member, samples, await fleet.vitals(member))),
    );
    const grows = trends.filter((trend) => trend.grows !== '').map(({ name, grows }) => `${name}: ${grows}`);
    const records = KINDS.flatMap((kind) => sentOf[kind]);
    const judged = judge({ name: 'soak' }, records, [], [remains, ...grows].filter((text) => text !== '').join('; '));
    const { sent, ok, left, failed, lostTokens, doubledTokens, broken } = judged;
    const counts = { lostTokens, doubledTokens, restarts, kills };
    const differences = KINDS.flatMap((kind) =>
      sentOf[kind].flatMap(({ difference, sentMs }) => (difference ? [{ ...difference, kind, sentMs }] : [])),
    );
    return { minutes, sent, ok, left, failed, ...counts, mix: countMix(sentOf), trends, broken, differences };
  } finally {
    await fleet.close();
  }
}

export function countMix(sent: Readonly<Record<Kind, readonly StreamRecord[]>>): Readonly<Record<Kind, MixCounts>> {
  const count = (kind: Kind): MixCounts => {
    const ended = (as: StreamRecord['outcome']) => sent[kind].filter(({ outcome }) => outcome === as).length;
    return { sent: sent[kind].length, ok: ended('ok'), left: ended('left') };
  };
  return Object.fromEntries(KINDS.map((kind) => [kind, count(kind)])) as Record<Kind, MixCounts>;
}

/** Samples of each process, until the signal. */
async function watch(fleet: Fleet, members: readonly Member[], startMs: number, until: AbortSignal) {
  const samples = new Map<string, Sample[]>(members.map(({ process }) => [process.name, []]));
  while (!until.aborted) {
    for (const member of members) {
      const vitals = await fleet.vitals(member);
      if (vitals) samples.get(member.process.name)?.push({ ...vitals, atMs: performance.now() - startMs });
    }
    await sleep(SAMPLE_EVERY_MS, undefined, { signal: until }).catch(() => {});
  }
  return samples;
}

/** Restarts and kills, in turn, the second worker of each pool. */
async function disturb(fleet: Fleet, { restartEverySeconds, seed }: SoakOptions, until: AbortSignal) {
  const random = new RandomStream(seed + 7);
  const victims = [fleet.of('prefill')[1]!, fleet.of('decode')[1]!];
  let [restarts, kills] = [0, 0];
  while (!until.aborted) {
    const pauseMs = restartEverySeconds * 1000 * (0.5 + random.uniform());
    await sleep(pauseMs, undefined, { signal: until }).catch(() => {});
    if (until.aborted) break;
    const member = victims[random.below(victims.length)]!;
    if (!(await fleet.answers(member))) continue; // still coming back: it could not drain
    const { process: victim } = member;
    if (random.uniform() < 0.5) {
      await victim.restart();
      restarts++;
    } else if (victim.pid !== undefined) {
      process.kill(victim.pid, 'SIGKILL');
      kills++;
    }
  }
  return { restarts, kills };
}

function trendOf(
  { process: { name } }: Member,
  all: ReadonlyMap<string, readonly Sample[]>,
  last: Vitals | undefined,
): ProcessTrend {
  const samples = all.get(name) ?? [];
  const warmMs = (samples.at(-1)?.atMs ?? 0) / 3;
  const warm = samples.filter(({ atMs }) => atMs >= warmMs);
  const slope = (of: keyof typeof LIMITS) => fitFloor(warm.map((sample) => [sample.atMs / 3_600_000, sample[of]]));
  const [rssBytes, heapBytes, openFiles] = [slope('rssBytes'), slope('heapBytes'), slope('openFiles')];
  const stagedLeftBytes = last?.stagedBytes ?? 0;
  const judged = (samples.at(-1)?.atMs ?? 0) >= JUDGED_FROM_MS;
  // Growth that is as likely noise is none.
  const beyond = ({ perUnit, error }: Slope, limit: number) => judged && perUnit - 2 * error > limit;
  const grows = [
    beyond(rssBytes, LIMITS.rssBytes) ? 'its memory grows' : '',
    beyond(heapBytes, LIMITS.heapBytes) ? 'its heap grows' : '',
    beyond(openFiles, LIMITS.openFiles) ? 'its open files grow' : '',
    stagedLeftBytes > 0 ? `${stagedLeftBytes} bytes of KV stay behind` : '',
  ];
  return {
    name,
    samples: warm.length,
    rssBytes,
    heapBytes,
    openFiles,
    stagedPeakBytes: Math.max(0, ...samples.map(({ stagedBytes }) => stagedBytes)),
    stagedLeftBytes,
    grows: grows.filter((text) => text !== '').join(', '),
  };
}
