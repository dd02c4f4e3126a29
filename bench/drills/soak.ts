/**
 * `bench soak` sends a mix of load for hours, and restarts and kills workers meanwhile. The gateway, the indexer and
 * the first worker of each pool are not restarted, and their memory and open files are watched.
 */
import { mkdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { repeatUntilAborted } from '../../services/lib/async/repeat.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { runIndexCommand } from '../system/cli.ts';
import type { BenchModel } from '../system/model.ts';
import { PromptMaker } from '../system/prompts.ts';
import type { SoakOptions } from './command.ts';
import { Fleet, type Member, type Vitals } from './fleet.ts';
import { judge } from './judge.ts';
import { countMix, KINDS, type Kind, type MixCounts, makeMix, sendMix } from './mix.ts';
import { fitFloor, JUDGED_FROM_MS, type Slope } from './slope.ts';
import { type Difference, makeReferences } from './streams.ts';

interface SoakRunOptions extends Pick<SoakOptions, 'path' | 'data' | 'minutes' | 'rate' | 'restartEvery' | 'seed'> {
  /** Name of the repository in the index. */
  readonly repo: string;
  readonly onProgress: (text: string) => void;
}

interface ProcessTrend {
  readonly name: string;
  readonly samples: number;
  /** Slopes of the floor per hour. The first third of the time, in which heaps fill, does not count. */
  readonly rssBytes: Slope;
  /** The floor of the heap's size is what lives in it: memory that is not released shows here first. */
  readonly heapBytes: Slope;
  readonly openFiles: Slope;
  /** Most bytes of KV that were staged at once, and bytes that were left at the end. */
  readonly stagedPeakBytes: number;
  readonly stagedLeftBytes: number;
  /** The figures that grow, in words; '' if none does. */
  readonly grows: string;
}

export interface SoakResult {
  readonly minutes: number;
  readonly sent: number;
  readonly ok: number;
  readonly left: number;
  readonly failed: Readonly<Record<string, number>>;
  readonly lostTokens: number;
  readonly doubledTokens: number;
  /** Counts by kind of traffic. */
  readonly mix: Readonly<Record<Kind, MixCounts>>;
  readonly restarts: number;
  readonly kills: number;
  readonly trends: readonly ProcessTrend[];
  readonly broken: string;
  /** Streams that ended well but with wrong tokens. */
  readonly differences: readonly (Difference & { readonly kind: Kind; readonly sentMs: number })[];
}

const SAMPLE_EVERY_MS = 2_000;
const REFERENCES = 8;
/** Growth per hour above which it is not noise. */
const LIMITS = { rssBytes: 32 << 20, heapBytes: 16 << 20, openFiles: 6 };

interface Sample extends Vitals {
  readonly atMs: number;
}

export async function runSoak(model: BenchModel, options: SoakRunOptions): Promise<SoakResult> {
  const { data, minutes, rate, seed, onProgress } = options;
  await mkdir(data, { recursive: true });
  const store = `lmdb:${resolve(data, 'drill-store')}`;
  onProgress('starting');
  const { bundle } = model;
  await runIndexCommand({ bundle, store, repo: options.repo, path: options.path });
  const prompts = await PromptMaker.load(options.repo, options.path, model.tokenizer);
  const fleet = await Fleet.start({ bundle, store, data, workers: 2 });
  try {
    const references = await makeReferences(fleet, prompts, REFERENCES);
    const mix = await makeMix(fleet, options.path, references);
    const startMs = performance.now();
    const over = new AbortController();
    const watched = [...fleet.of('gateway'), fleet.of('prefill')[0]!, fleet.of('decode')[0]!, ...fleet.of('indexer')];
    const traffic = sendMix(fleet, mix, { rate, seed }, startMs, over.signal);
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

/** Samples each process until the signal is aborted. @returns the samples by the name of the process. */
async function watch(fleet: Fleet, members: readonly Member[], startMs: number, until: AbortSignal) {
  const samples = new Map<string, Sample[]>(members.map(({ process }) => [process.name, []]));
  await repeatUntilAborted(until, async () => {
    for (const member of members) {
      const vitals = await fleet.vitals(member);
      if (vitals) samples.get(member.process.name)?.push({ ...vitals, atMs: performance.now() - startMs });
    }
    return SAMPLE_EVERY_MS;
  });
  return samples;
}

/** Restarts or kills the second worker of a pool, again and again at random, until the signal is aborted. */
async function disturb(fleet: Fleet, { restartEvery, seed }: SoakRunOptions, until: AbortSignal) {
  const random = new RandomStream(seed + 7);
  const victims = [fleet.of('prefill')[1]!, fleet.of('decode')[1]!];
  let [restarts, kills] = [0, 0];
  const pauseMs = () => restartEvery * 1000 * (0.5 + random.uniform());
  await sleep(pauseMs(), undefined, { signal: until }).catch(() => {});
  await repeatUntilAborted(until, async () => {
    const member = victims[random.below(victims.length)]!;
    if (!(await fleet.answers(member))) return pauseMs(); // it is still coming back, and could not drain
    const { process: victim } = member;
    if (random.uniform() < 0.5) {
      await victim.restart();
      restarts++;
    } else if (victim.pid !== undefined) {
      process.kill(victim.pid, 'SIGKILL');
      kills++;
    }
    return pauseMs();
  });
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
  // Growth that may as well be noise does not count.
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
