/** The drills: how each disturbs a running system, and which part of the system's promise must hold meanwhile. */
import { setTimeout as sleep } from 'node:timers/promises';
import { streamCompletion } from '../../services/client.ts';
import type { Role } from '../../services/supervisor.ts';
import { fillDisk } from './disk-full.ts';
import type { Fleet } from './fleet.ts';
import { sendHostileInputs } from './hostile-inputs.ts';
import type { Drill, Scene } from './scene.ts';
import { readSlowly, socketsHoldAll } from './slow-readers.ts';
import type { Reference } from './streams.ts';
import { ANSWER_TIMEOUT_MS, deaden, HOLD_MS, kill, stop, strikeEach, unplug } from './strikes.ts';
import { strikeUploads } from './struck-uploads.ts';

const killed = (role: Role, mayFail = false): Drill => ({
  name: `kill -9 ${role}`,
  mayFail,
  disturb: (scene) => strikeEach(scene, role, kill),
});

const stopped = (role: Role): Drill => ({
  name: `SIGSTOP ${role}, ${HOLD_MS / 1000} s`,
  disturb: (scene) => strikeEach(scene, role, stop),
});

const cutOff = (role: Role): Drill => ({
  name: `link to ${role} dead, ${HOLD_MS / 1000} s`,
  disturb: (scene) => strikeEach(scene, role, deaden),
});

const partitioned = (role: Role): Drill => ({
  name: `cable of ${role} pulled, ${HOLD_MS / 1000} s`,
  disturb: (scene) => strikeEach(scene, role, unplug),
});

/** Delay of everything between services in the drill of slow links, in each direction. */
const SLOW_MS = 30;

async function slowLinks({ fleet, seconds, mark }: Scene): Promise<undefined> {
  mark();
  const links = [...fleet.of('prefill'), ...fleet.of('decode')].flatMap(({ link }) => link ?? []);
  for (const link of links) link.delayMs = SLOW_MS;
  await sleep(1000 * seconds);
  for (const link of links) link.delayMs = 0;
}

async function storeAway({ storeLink, seconds, mark }: Scene): Promise<undefined> {
  await sleep(500);
  mark();
  storeLink!.state = 'down';
  await sleep(1000 * seconds);
  storeLink!.state = 'up';
  await sleep(1000);
}

/** Redis keeps a log, so the context of prompts must come back with it. */
async function killRedis({ redis, fleet, references, count, seconds, mark }: Scene): Promise<string> {
  let longestMs = 0;
  for (let i = 0; i < count; i++) {
    await sleep(500);
    mark();
    await redis!.kill();
    await sleep(1000 * seconds);
    await redis!.restart();
    longestMs = Math.max(longestMs, await untilContextIsBack(fleet, references[0]!));
  }
  return `context again ${longestMs.toFixed(0)} ms after its restart`;
}

/** Waits until prompts have context again. @returns how long that took, in ms. */
async function untilContextIsBack(fleet: Fleet, { body }: Reference): Promise<number> {
  const startMs = performance.now();
  for (;;) {
    const once = { ...body, max_tokens: 1 };
    const { rag } = await streamCompletion(fleet.url, once, AbortSignal.timeout(ANSWER_TIMEOUT_MS), fleet);
    const tookMs = performance.now() - startMs;
    if (!rag?.degraded) return tookMs;
    if (tookMs > ANSWER_TIMEOUT_MS)
      throw new Error(`prompts had no context for ${ANSWER_TIMEOUT_MS} ms after the restart: ${rag.degraded}`);
    await sleep(50);
  }
}

/** Disturbs nothing, and lets the traffic run. */
export const watch = ({ seconds }: Pick<Scene, 'seconds'>) => sleep(1000 * seconds, undefined);

export const DRILLS: readonly Drill[] = [
  { name: 'nothing', disturb: watch },
  killed('prefill'),
  killed('decode'),
  { name: 'kill -9 indexer', disturb: (scene) => strikeUploads(scene, kill, scene.count) },
  killed('gateway', true),
  stopped('prefill'),
  stopped('decode'),
  { name: `SIGSTOP indexer, ${HOLD_MS / 1000} s`, disturb: (scene) => strikeUploads(scene, stop, 1) },
  stopped('gateway'),
  cutOff('prefill'),
  cutOff('decode'),
  { name: `links ${SLOW_MS} ms late`, disturb: slowLinks },
  { name: 'clients that vanish', leaving: 0.6, disturb: watch },
  { name: 'clients that do not read', impossible: socketsHoldAll, disturb: readSlowly },
  { name: 'hostile inputs', disturb: sendHostileInputs },
  {
    name: 'store away',
    impossible: ({ storeLink }) => (storeLink ? undefined : 'needs --redis'),
    disturb: storeAway,
  },
  {
    name: 'disk full under LMDB',
    impossible: ({ storeLink }) => {
      if (storeLink) return 'needs LMDB';
      return process.platform === 'win32' ? 'needs ulimit' : undefined;
    },
    disturb: fillDisk,
  },
];

/** Drills on colocated workers: a stream continues at the other worker, which computes its prompt again. */
export const COLOCATED_DRILLS: readonly Drill[] = [killed('colocated'), stopped('colocated')];

/** Drills on a Redis that belongs to the drills. */
export const REDIS_DRILLS: readonly Drill[] = [{ name: 'kill -9 redis', disturb: killRedis }];

/** Drills on workers in network namespaces: packets are lost, and no process is told. */
export const PARTITION_DRILLS: readonly Drill[] = [partitioned('prefill'), partitioned('decode')];
