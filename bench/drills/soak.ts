/**
 * `bench soak` sends a mix of load for hours. First nobody attacks and nothing is struck; then workers are restarted
 * and killed; then hostile tenants attack as well. The gateway, the indexer and the first worker of each pool are not
 * restarted, and their memory and open files are watched.
 */
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { streamCompletion } from '../../services/client.ts';
import { repeatUntilAborted } from '../../services/lib/async/repeat.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { OnProgress } from '../harness/run.ts';
import { promptOf } from '../hostile/raw-client.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { percentiles } from '../measure/latency.ts';
import { runIndexCommand } from '../system/cli.ts';
import type { BenchModel } from '../system/model.ts';
import { PromptMaker } from '../system/prompts.ts';
import { owner } from '../system/tenants.ts';
import { Attackers } from './attackers.ts';
import type { AttackReport } from './attackers-child.ts';
import type { SoakOptions } from './command.ts';
import { Fleet, type Member } from './fleet.ts';
import { measureCapacity, rateWithinShare } from './honest-rate.ts';
import { type AttackerCounts, hostileTenants } from './hostile-rotation.ts';
import { judge, type Outcome } from './judge.ts';
import { countMix, KINDS, type Kind, type MixCounts, makeMix, sendMix } from './mix.ts';
import { type Difference, makeReferences, type StreamRecord, TIMEOUT_MS } from './streams.ts';
import { comeBack } from './strikes.ts';
import { type ProcessTrend, type Sample, trendOf } from './trend.ts';
import { compareWaits, judgeWaits, type Phases, type Span, type WaitComparison } from './waits.ts';

interface SoakRunOptions
  extends Partial<Pick<SoakOptions, 'speculation'>>,
    Pick<SoakOptions, 'path' | 'data' | 'minutes' | 'rate' | 'restartEvery' | 'seed' | 'honestOnly' | 'hostileTokens'> {
  /** Name of the repository in the index. */
  readonly repo: string;
  readonly onProgress: OnProgress;
  /** Ends the soak early: what was seen until then is judged. */
  readonly stop: AbortSignal;
}

export interface SoakResult extends Outcome {
  /** Duration of the traffic. */
  readonly minutes: number;
  /** Whether somebody ended it before its time. */
  readonly endedEarly: boolean;
  /** Duration of the part in which nobody attacked and nothing was struck. */
  readonly undisturbedMinutes: number;
  /** Duration of the part after that, in which nobody attacked. */
  readonly calmMinutes: number;
  /** Rate of the honest traffic, and what it was derived from; undefined where the rate was given. */
  readonly honest: { readonly rate: number; readonly capacity: number | undefined };
  /** Counts by kind of traffic. */
  readonly mix: Readonly<Record<Kind, MixCounts>>;
  readonly restarts: number;
  readonly kills: number;
  readonly waits: WaitComparison;
  readonly attackers: readonly AttackerCounts[];
  readonly trends: readonly ProcessTrend[];
  /** Streams that ended well but with wrong tokens. */
  readonly differences: readonly (Difference & { readonly kind: Kind; readonly sentMs: number })[];
}

const SAMPLE_EVERY_MS = 2_000;
const REFERENCES = 8;
const MINUTE_MS = 60_000;
/**
 * The parts before the attacks: each a share of the time, or so long. Of an hour 25 minutes are calm and 31 attacked,
 * so that p99 rests on some 1,000 requests on both sides.
 */
const UNDISTURBED = { share: 1 / 15, longestMs: 4 * MINUTE_MS };
const CALM = { share: 5 / 12, longestMs: 25 * MINUTE_MS };
/** Share of the undisturbed part that does not count, as systems warm up. */
const WARMUP_SHARE = 0.2;
/**
 * Slots of each prefill worker. The honest tenant has 32 prompts: 8 of one repository, and 8 of each version of one
 * that is edited. They fit into the three quarters of one worker's slots in which prompts that are reused are safe from
 * new ones: while the other worker is away it must hold all of them. With fewer slots the tenant would fill all of them
 * while it is alone, and lose some to attackers by right.
 */
const PREFILL_SLOTS = 48;
/** Prompts that fill slots: as many at once as two decode workers have slots, each with a few steps beside others. */
const FILLING = { atOnce: 16, outputTokens: 8 };

export async function runSoak(model: BenchModel, options: SoakRunOptions): Promise<SoakResult> {
  const { data, honestOnly, hostileTokens, speculation, onProgress, stop } = options;
  await mkdir(data, { recursive: true });
  const store = `lmdb:${resolve(data, 'drill-store')}`;
  onProgress('starting');
  const { bundle } = model;
  await runIndexCommand({ bundle, store, repo: options.repo, path: options.path });
  const prompts = await PromptMaker.load(options.repo, options.path, model.tokenizer);
  const hostile = hostileTenants(hostileTokens);
  const tenants = [owner(), ...(honestOnly ? [] : hostile)];
  const fleet = await Fleet.start({
    bundle,
    store,
    data,
    workers: 2,
    tenants,
    speculation,
    prefillSlots: PREFILL_SLOTS,
  });
  try {
    onProgress('filling the slots');
    await fillSlots(fleet, options.seed, stop);
    const references = await makeReferences(fleet, prompts, REFERENCES);
    const mix = await makeMix(fleet, options.path, references);
    stop.throwIfAborted();
    const capacity = options.rate === undefined ? await measureCapacity(fleet, references) : undefined;
    // Without attackers the rate is the same, so that both can be compared.
    const rate = options.rate ?? rateWithinShare(capacity!, 1 + hostile.length);
    stop.throwIfAborted();
    return await soak(fleet, mix, { ...options, honest: { rate, capacity } });
  } finally {
    await fleet.close();
  }
}

/**
 * Sends prompts as long as a slot, three for every two slots of prefill workers, so that each slot of every worker has
 * held one. Pages of a slot are resident from when something is written to them for the first time, and long prompts
 * are rare in the traffic: the resident memory of a worker with 24 slots of 6 MiB rose for more than an hour.
 */
async function fillSlots(fleet: Fleet, seed: number, stop: AbortSignal): Promise<void> {
  const random = new RandomStream(seed + 11);
  const { url, capacity, apiKey } = fleet;
  let left = 3 * PREFILL_SLOTS;
  const keepSending = async () => {
    while (left-- > 0) {
      const prompt = promptOf(random, capacity - FILLING.outputTokens);
      const body = { prompt, max_tokens: FILLING.outputTokens, temperature: 0, ignore_eos: true };
      await streamCompletion(url, body, AbortSignal.any([stop, AbortSignal.timeout(TIMEOUT_MS)]), { apiKey });
    }
  };
  await Promise.all(Array.from({ length: FILLING.atOnce }, keepSending));
}

/** The parts of a run of `lastsMs` before the attacks. */
function phasesOf(lastsMs: number): Phases {
  const lengthOf = ({ share, longestMs }: typeof CALM) => Math.min(longestMs, share * lastsMs);
  const calmFromMs = lengthOf(UNDISTURBED);
  return {
    undisturbed: { fromMs: WARMUP_SHARE * calmFromMs, toMs: calmFromMs },
    calm: { fromMs: calmFromMs, toMs: calmFromMs + lengthOf(CALM) },
  };
}

/** Sends the traffic, disturbs it, and judges what was seen. */
async function soak(
  fleet: Fleet,
  mix: Awaited<ReturnType<typeof makeMix>>,
  options: SoakRunOptions & Pick<SoakResult, 'honest'>,
): Promise<SoakResult> {
  const { honest, seed, minutes } = options;
  const { rate } = honest;
  const startMs = performance.now();
  const now = () => performance.now() - startMs;
  const phases = phasesOf(minutes * MINUTE_MS);
  const attackFromMs = phases.calm.toMs;
  const over = new AbortController();
  const watched = [...fleet.of('gateway'), fleet.of('prefill')[0]!, fleet.of('decode')[0]!, ...fleet.of('indexer')];
  const pids = watched.map(({ process }) => process.pid);
  const samples = new Map<string, Sample[]>(watched.map(({ process }) => [process.name, []]));
  const ended: StreamRecord[] = [];
  const traffic = sendMix(fleet, mix, { rate, seed, onRecord: (record) => ended.push(record) }, startMs, over.signal);
  const watching = watch(fleet, watched, samples, startMs, over.signal);
  const after = (ms: number) => sleep(ms, undefined, { signal: over.signal }).catch(() => {});
  const struck: Struck = { restarts: 0, kills: 0, strikes: [], problems: [] };
  // An error ends the soak early, and what was seen until then is kept.
  const fail = (error: unknown) => {
    struck.problems.push(`the soak failed: ${ServingError.from(error).message}`);
    over.abort();
  };
  const disturbing = after(phases.calm.fromMs)
    .then(() => disturb(fleet, options, struck, now, over.signal))
    .catch(fail);
  const attacking = after(attackFromMs)
    .then(() => attack(fleet, seed, now, over.signal))
    .catch(fail);
  const report = () => options.onProgress(lookBack(now(), options, ended, samples), true);
  await untilOver(minutes * MINUTE_MS, options, now, report, over.signal);
  over.abort();
  const lastedMs = now();
  const [sentOf, { attackers, turns } = NOBODY_ATTACKED] = await Promise.all([
    traffic,
    attacking,
    watching,
    disturbing,
  ]);
  const { strikes, problems, ...counts } = struck;
  const remains = await fleet.settle();
  const trends = await Promise.all(
    watched.map(async (member) => {
      const { name } = member.process;
      return trendOf(name, samples.get(name) ?? [], attackFromMs, await fleet.vitals(member));
    }),
  );
  const died = watched.flatMap(({ process: { name, pid } }, i) => (pid === pids[i] ? [] : [`${name} died`]));
  const grows = trends.filter((trend) => trend.grows !== '').map(({ name, grows }) => `${name}: ${grows}`);
  const waits = compareWaits([...sentOf.completions, ...sentOf.keystrokes], phases, strikes, turns);
  const records = KINDS.flatMap((kind) => sentOf[kind]);
  const found = [remains, ...died, ...problems, ...grows, judgeWaits(waits)].filter((text) => text !== '').join('; ');
  const { sent, ok, left, failed, lostTokens, doubledTokens, broken } = judge({ name: 'soak' }, records, [], found);
  const differences = KINDS.flatMap((kind) =>
    sentOf[kind].flatMap(({ difference, sentMs }) => (difference ? [{ ...difference, kind, sentMs }] : [])),
  );
  return {
    ...{ minutes: lastedMs / MINUTE_MS, endedEarly: options.stop.aborted },
    undisturbedMinutes: phases.calm.fromMs / MINUTE_MS,
    calmMinutes: (attackFromMs - phases.calm.fromMs) / MINUTE_MS,
    ...{ sent, ok, left, failed, lostTokens, doubledTokens, broken, honest, mix: countMix(sentOf) },
    ...{ ...counts, waits, attackers, trends, differences },
  };
}

const NOBODY_ATTACKED: AttackReport = { attackers: [], turns: [] };

/** Lets all tenants but the first, who is honest, attack until the signal is aborted. */
async function attack(
  { url, capacity, tenants }: Fleet,
  seed: number,
  now: () => number,
  until: AbortSignal,
): Promise<AttackReport> {
  const hostile = tenants.slice(1);
  if (hostile.length === 0 || until.aborted) return NOBODY_ATTACKED;
  const attackers = await Attackers.start({ url, capacity, hostile, seed }, now);
  if (!until.aborted) await once(until, 'abort');
  return attackers.end();
}

/** Waits until the soak's time is over, or somebody ends it, and reports every minute. */
async function untilOver(
  endMs: number,
  { minutes, onProgress, stop }: SoakRunOptions,
  now: () => number,
  report: () => void,
  over: AbortSignal,
): Promise<void> {
  let reported = 0;
  while (now() < endMs && !stop.aborted && !over.aborted) {
    await sleep(500, undefined, { signal: stop }).catch(() => {});
    const passed = Math.floor(now() / MINUTE_MS);
    if (passed > reported) report();
    else if (reported === 0) onProgress(`${(now() / MINUTE_MS).toFixed(1)} of ${minutes} minutes`);
    reported = passed;
  }
}

/** The last minute of a soak, as one line. */
function lookBack(
  nowMs: number,
  { minutes }: SoakRunOptions,
  ended: readonly StreamRecord[],
  samples: ReadonlyMap<string, readonly Sample[]>,
): string {
  const failed = ended.filter(({ outcome }) => outcome === 'failed').length;
  const wrong = ended.reduce((sum, { lost, doubled }) => sum + lost + doubled, 0);
  const recent = ended.filter(({ outcome, endedMs }) => outcome === 'ok' && endedMs > nowMs - MINUTE_MS);
  const { p50, p99 } = percentiles(recent.flatMap(({ sentMs, firstMs }) => (firstMs ? firstMs - sentMs : [])));
  const memory = [...samples].map(([name, of]) => `${name} ${Math.round((of.at(-1)?.rssBytes ?? 0) / 2 ** 20)}`);
  return (
    `${Math.floor(nowMs / MINUTE_MS)} of ${minutes} minutes: ${ended.length} requests, ${failed} failed, ${wrong} tokens wrong; ` +
    `p50 ${p50.toFixed(0)} and p99 ${p99.toFixed(0)} ms in the last minute; MiB: ${memory.join(', ')}`
  );
}

/** Samples each process until the signal is aborted. */
async function watch(
  fleet: Fleet,
  members: readonly Member[],
  samples: ReadonlyMap<string, Sample[]>,
  startMs: number,
  until: AbortSignal,
): Promise<void> {
  await repeatUntilAborted(until, async () => {
    for (const member of members) {
      const vitals = await fleet.vitals(member);
      if (vitals) samples.get(member.process.name)?.push({ ...vitals, atMs: performance.now() - startMs });
    }
    return SAMPLE_EVERY_MS;
  });
}

interface Struck {
  restarts: number;
  kills: number;
  /** Times in which a worker was away. */
  readonly strikes: Span[];
  /** Broken promises, in words. */
  readonly problems: string[];
}

/**
 * Restarts or kills the second worker of a pool, again and again at random, until the signal is aborted.
 * @param struck gets what was done, and what came of it.
 * @param now clock of the run.
 */
async function disturb(
  fleet: Fleet,
  options: SoakRunOptions,
  struck: Struck,
  now: () => number,
  until: AbortSignal,
): Promise<void> {
  const { restartEvery, seed } = options;
  const random = new RandomStream(seed + 7);
  const victims = [fleet.of('prefill')[1]!, fleet.of('decode')[1]!];
  const pauseMs = () => restartEvery * 1000 * (0.5 + random.uniform());
  await sleep(pauseMs(), undefined, { signal: until }).catch(() => {});
  await repeatUntilAborted(until, async () => {
    const member = victims[random.below(victims.length)]!;
    const { process: victim } = member;
    const [usable, fromMs] = [await fleet.usable(), now()];
    if (random.uniform() < 0.5) {
      struck.restarts++;
      await victim.restart().catch((error: Error) => {
        struck.problems.push(error.message.split('\n')[0]!);
        return victim.start();
      });
    } else if (victim.pid !== undefined) {
      struck.kills++;
      process.kill(victim.pid, 'SIGKILL');
    }
    await comeBack(fleet, member, usable).catch(async (error: Error) => {
      // The gateway may hold off a worker that lives because it was slow to answer.
      if (!(await fleet.answers(member))) struck.problems.push(error.message);
    });
    struck.strikes.push({ fromMs, toMs: now() });
    return pauseMs();
  });
}
