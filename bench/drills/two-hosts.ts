/**
 * Drills on the system on two hosts (cluster.ts): workers are found by name, pods are replaced, name servers fail, and
 * the cable between the hosts is cut.
 */
import { Resolver } from 'node:dns/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ErrorCode } from '../../services/lib/process/errors.ts';
import type { Role } from '../../services/supervisor.ts';
import type { Cluster } from './cluster.ts';
import { ask } from './json-request.ts';
import type { NameServer } from './name-server.ts';
import type { Drill, Scene } from './scene.ts';
import { untilBusy } from './strikes.ts';

/** Times of a cluster around the pods, in ms. */
interface ClusterTimes {
  /** How long a new pod must have been ready before an old one goes; as the chart has it if not given. */
  readonly minReadyMs?: number;
  /** How long its name server keeps answers: 30 s with the usual settings of CoreDNS. */
  readonly dnsCacheMs: number;
}

const COREDNS: ClusterTimes = { dnsCacheMs: 30_000 };

/** A cut that is shorter than the silence after which a worker counts as lost (--stall-timeout-ms, 10 s), in ms. */
const SHORT_CUT_MS = 4_000;
/** A longer one: no connection outlives it. */
const LONG_CUT_MS = 20_000;
/** Within this time after the cable is back every gateway uses all workers, in ms: keepalive ends dead connections. */
const BACK_MS = 15_000;
/** Within this time after name servers answer again their answers are known, in ms: resolvers ask again every 5 s. */
const NAMES_BACK_MS = 15_000;
const LOOK_EVERY_MS = 100;
/** What a request may end in that would wait for its first token longer than --target-ttft-ms allows. */
const WAITING: readonly ErrorCode[] = ['saturated'];
/** What a request may end in while no worker can be reached. Each of these says that it may be sent again. */
const UNREACHED: readonly ErrorCode[] = [...WAITING, 'no_worker', 'worker_stalled', 'worker_lost'];

/** Clients and gateways find everybody under the chart's names, and every worker gets work. */
async function findByName({ cluster, seconds, burst }: Pick<Scene, 'cluster' | 'seconds' | 'burst'>): Promise<string> {
  const { names, chart } = cluster!;
  const resolver = new Resolver();
  resolver.setServers([names.address]);
  const found = async (role: Role) => (await resolver.resolve4(cluster!.nameOf(role))).toSorted();
  for (const { role, replicas } of chart.pods) {
    const expected = cluster!.of(role).map(({ process }) => process.host);
    const addresses = await found(role);
    if (addresses.join() !== expected.toSorted().join() || addresses.length !== replicas)
      throw new Error(`the name of ${role} has ${addresses.join(', ')}, not ${expected.join(', ')}`);
  }
  const workers = [...cluster!.of('prefill'), ...cluster!.of('decode')];
  const usable = await cluster!.usable();
  if (usable !== workers.length) throw new Error(`a gateway uses ${usable} of ${workers.length} workers`);
  for (const worker of workers) {
    // One burst after the other: together they would wait longer than --target-ttft-ms allows.
    const answered = burst();
    await untilBusy(cluster!, worker);
    await answered;
  }
  await sleep(1000 * seconds);
  return `every gateway uses ${usable} workers of the other host, found by ${names.queries.true} queries`;
}

/**
 * Every Deployment but that of gateways gets new pods, one after the other in each and all of them at the same time, as
 * an upgrade of the chart does it. The name server is behind by the time for which it keeps answers.
 */
async function replacePods(
  scene: Pick<Scene, 'cluster' | 'count' | 'mark'>,
  { minReadyMs, dnsCacheMs }: ClusterTimes,
): Promise<string> {
  const cluster = scene.cluster!;
  const usable = await cluster.usable();
  const from = addressesOf(cluster);
  cluster.names.cacheMs = dnsCacheMs;
  const mended = scene.mark();
  try {
    const exchanged = cluster.chart.pods.map(async ({ role, minReadyMs: ofChart }) => {
      if (role === 'gateway') return;
      for (const old of cluster.of(role).slice(0, scene.count)) {
        await cluster.add(role);
        await sleep(minReadyMs ?? ofChart);
        await cluster.delete(old);
      }
    });
    for (const each of await Promise.allSettled(exchanged)) if (each.status === 'rejected') throw each.reason;
    const [uploadMs] = await Promise.all([timed(() => uploadAll(cluster)), untilUsable(cluster, usable, BACK_MS)]);
    mended();
    const moved = addressesOf(cluster).filter((address) => !from.includes(address)).length;
    return `${moved} pods at new addresses; uploads at every gateway took ${uploadMs.toFixed(0)} ms after the exchange`;
  } finally {
    cluster.names.cacheMs = 0;
  }
}

/** Uploads a repository through each gateway, which must find the indexer. @throws ServingError where one fails. */
async function uploadAll(cluster: Cluster): Promise<void> {
  const files = [{ path: 'moved.py', content: 'def moved(value):\n    return value\n' }];
  const uploads = cluster.of('gateway').map(({ process }, i) => {
    return ask('PUT', `http://${process.address}/v1/repos/moved-${i}`, { files }, { apiKey: cluster.apiKey });
  });
  await Promise.all(uploads);
}

const addressesOf = (cluster: Cluster) => cluster.members.map(({ process }) => process.address);

async function timed(task: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await task();
  return performance.now() - startMs;
}

/** Waits until every gateway uses so many workers. @throws Error when that takes longer. */
async function untilUsable(cluster: Cluster, count: number, withinMs: number): Promise<void> {
  const deadlineMs = performance.now() + withinMs;
  for (;;) {
    const usable = await cluster.usable();
    if (usable === count) return;
    if (performance.now() > deadlineMs)
      throw new Error(`after ${withinMs} ms a gateway uses ${usable} workers, not ${count}`);
    await sleep(LOOK_EVERY_MS);
  }
}

/** The name server is silent, then knows no name, then fails. No gateway may lose a worker by that. */
async function failNames({ cluster, seconds, mark }: Pick<Scene, 'cluster' | 'seconds' | 'mark'>): Promise<string> {
  const { names } = cluster!;
  const usable = await cluster!.usable();
  const keepsWorkers = async () => {
    const now = await cluster!.usable(usable);
    if (now >= usable) return;
    throw new Error(`a gateway used ${now} of ${usable} workers while the name server was ${names.mood}`);
  };
  const unanswered: string[] = [];
  // Resolvers wait for 5 s: silence must last longer to be noticed.
  for (const [mood, lastsMs] of [
    ['silent', 4_000 * seconds],
    ['no such name', 1_000 * seconds],
    ['failed', 1_000 * seconds],
  ] as const) {
    mark();
    names.mood = mood;
    const asked = await asking(names, lastsMs, keepsWorkers).finally(() => {
      names.mood = 'true';
    });
    unanswered.push(`${asked} (${mood})`);
    await asking(names, 0, keepsWorkers);
  }
  return `queries without a right answer: ${unanswered.join(', ')}`;
}

/**
 * Waits for a time, and until the name server has been asked.
 * @param look is done meanwhile.
 * @returns how often it was asked.
 */
async function asking(names: NameServer, lastsMs: number, look: () => Promise<void>): Promise<number> {
  const { mood, queries } = names;
  const [before, sinceMs] = [queries[mood], performance.now()];
  for (;;) {
    await look();
    const [asked, tookMs] = [queries[mood] - before, performance.now() - sinceMs];
    if (asked > 0 && tookMs >= lastsMs) return asked;
    if (tookMs > lastsMs + NAMES_BACK_MS) throw new Error(`nobody asked for a name within ${NAMES_BACK_MS} ms`);
    await sleep(LOOK_EVERY_MS);
  }
}

/** Cuts the cable of the host with all workers while they have work. */
async function cutCable({ cluster, mark, burst }: Pick<Scene, 'cluster' | 'mark' | 'burst'>, lastsMs: number) {
  const usable = await cluster!.usable();
  void burst();
  await untilBusy(cluster!, cluster!.of('decode')[0]!);
  const mended = mark();
  await cluster!.far.cut();
  await sleep(lastsMs);
  await cluster!.far.heal();
  const backMs = await timed(() => untilUsable(cluster!, usable, BACK_MS));
  mended();
  return `every gateway used all workers again ${backMs.toFixed(0)} ms after the cable was back`;
}

/** @param times of a cluster; a test shortens them. */
export const twoHostsDrills = (times = COREDNS, longCutMs = LONG_CUT_MS): Drill[] => [
  { name: 'two hosts: workers found by name', disturb: findByName },
  { name: 'two hosts: pods replaced by others elsewhere', disturb: (scene) => replacePods(scene, times) },
  { name: 'two hosts: name server silent or wrong', disturb: failNames },
  {
    name: `two hosts: cable cut for ${SHORT_CUT_MS / 1000} s`,
    mayFailWith: WAITING,
    disturb: (scene) => cutCable(scene, SHORT_CUT_MS),
  },
  {
    name: `two hosts: cable cut for ${longCutMs / 1000} s`,
    mayFailWith: UNREACHED,
    disturb: (scene) => cutCable(scene, longCutMs),
  },
];
