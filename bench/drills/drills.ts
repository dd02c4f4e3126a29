/** The drills: what is done to a running system, and what of its promise must hold meanwhile. */
import { setTimeout as sleep } from 'node:timers/promises';
import { streamCompletion } from '../../services/client.ts';
import type { Role } from '../../services/supervisor.ts';
import { fillDisk } from './disk-full.ts';
import { type Fleet, type Member, STALL_TIMEOUT_MS } from './fleet.ts';
import type { Drill, Scene } from './scene.ts';
import { readSlowly } from './slow-readers.ts';
import type { Reference } from './streams.ts';

/** Beyond what the gateway takes for lost. */
const HOLD_MS = STALL_TIMEOUT_MS + 2_000;
const ANSWER_TIMEOUT_MS = 30_000;
/** So that some requests come when all is well again. */
const AFTERWARDS_MS = 1_500;

/** Does something to members of a role in turn, at random moments, each time when all is well again. */
async function disturbEach(scene: Scene, role: Role, act: (member: Member) => Promise<void>): Promise<undefined> {
  const members = scene.fleet.of(role);
  for (let i = 0; i < scene.count; i++) {
    await sleep(200 + scene.random.uniform() * 800);
    const member = members[i % members.length]!;
    if (role === 'colocated') await untilBusy(scene.fleet, member);
    scene.mark();
    await act(member);
    await comeBack(scene.fleet, member);
  }
  await sleep(AFTERWARDS_MS);
}

async function comeBack(fleet: Fleet, member: Member): Promise<void> {
  const deadlineMs = performance.now() + ANSWER_TIMEOUT_MS;
  while (performance.now() < deadlineMs) {
    if (await fleet.answers(member)) return;
    await sleep(50);
  }
  throw new Error(`${member.process.name} did not come back within ${ANSWER_TIMEOUT_MS} ms`);
}

const signal = (member: Member, name: NodeJS.Signals) => {
  if (member.process.pid !== undefined) process.kill(member.process.pid, name);
};

const killed = (role: Role, mayFail = false): Drill => ({
  name: `kill -9 ${role}`,
  mayFail,
  disturb: (scene) =>
    disturbEach(scene, role, async (member) => {
      const { pid } = member.process;
      signal(member, 'SIGKILL');
      // It comes back as another process.
      while (member.process.pid === pid) await sleep(20);
    }),
});

const stopped = (role: Role, mayFail = false): Drill => ({
  name: `SIGSTOP ${role}, ${HOLD_MS / 1000} s`,
  mayFail,
  disturb: (scene) =>
    disturbEach(scene, role, async (member) => {
      signal(member, 'SIGSTOP');
      await sleep(HOLD_MS);
      signal(member, 'SIGCONT');
    }),
});

const cutOff = (role: Role): Drill => ({
  name: `link to ${role} dead, ${HOLD_MS / 1000} s`,
  disturb: (scene) =>
    disturbEach(scene, role, async ({ link }) => {
      link!.state = 'dead';
      await sleep(HOLD_MS);
      link!.state = 'up';
    }),
});

/** Streams are short: where the moment is left to chance few are struck, and nothing is seen of what becomes of them. */
async function untilBusy(fleet: Fleet, member: Member): Promise<void> {
  const deadlineMs = performance.now() + ANSWER_TIMEOUT_MS;
  while (!((await fleet.vitals(member))?.running ?? 0)) {
    if (performance.now() > deadlineMs) throw new Error(`${member.process.name} got no work`);
    await sleep(5);
  }
}

/** The same drill, which says how many requests went on elsewhere. */
const counted = ({ name, disturb }: Drill): Drill => ({
  name,
  disturb: async (scene) => {
    const before = await scene.fleet.replays();
    await disturb(scene);
    return `${(await scene.fleet.replays()) - before} requests went on at the other worker`;
  },
});

const partitioned = (role: Role): Drill => ({
  name: `cable of ${role} pulled, ${HOLD_MS / 1000} s`,
  disturb: (scene) =>
    disturbEach(scene, role, async ({ port }) => {
      await port!.cut();
      await sleep(HOLD_MS);
      await port!.heal();
    }),
});

/** Everything between services late by so much, each way. */
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

/** What it held is in its log: with it must come back the context of prompts. */
async function killRedis({ redis, fleet, references, count, seconds, mark }: Scene): Promise<string> {
  let longestMs = 0;
  for (let i = 0; i < count; i++) {
    await sleep(500);
    mark();
    await redis!.kill();
    await sleep(1000 * seconds);
    await redis!.restart();
    longestMs = Math.max(longestMs, await untilItHasContext(fleet, references[0]!));
  }
  await sleep(AFTERWARDS_MS);
  return `context again ${longestMs.toFixed(0)} ms after its restart`;
}

/** @returns how long it took, in ms. */
async function untilItHasContext({ url }: Fleet, { body }: Reference): Promise<number> {
  const startMs = performance.now();
  for (;;) {
    const { rag } = await streamCompletion(url, { ...body, max_tokens: 1 }, AbortSignal.timeout(ANSWER_TIMEOUT_MS));
    const tookMs = performance.now() - startMs;
    if (!rag?.degraded) return tookMs;
    if (tookMs > ANSWER_TIMEOUT_MS) throw new Error(`prompts still have no context: ${rag.degraded}`);
    await sleep(50);
  }
}

/** Nothing more is done. */
export const watch = ({ seconds }: Pick<Scene, 'seconds'>) => sleep(1000 * seconds, undefined);

export const DRILLS: readonly Drill[] = [
  { name: 'nothing', disturb: watch },
  killed('prefill'),
  killed('decode'),
  killed('indexer'),
  killed('gateway', true),
  stopped('prefill'),
  stopped('decode'),
  stopped('indexer'),
  stopped('gateway'),
  cutOff('prefill'),
  cutOff('decode'),
  { name: `links ${SLOW_MS} ms late`, disturb: slowLinks },
  { name: 'clients that vanish', leaving: 0.6, disturb: watch },
  { name: 'clients that do not read', disturb: readSlowly },
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

/** Of workers that do both halves: a stream goes on at the other one, which computes its prompt again. */
export const COLOCATED_DRILLS: readonly Drill[] = [counted(killed('colocated')), counted(stopped('colocated'))];

/** Of a Redis that is the drills' own. */
export const REDIS_DRILLS: readonly Drill[] = [{ name: 'kill -9 redis', disturb: killRedis }];

/** Of workers on machines of their own: packets are lost, and nobody is told. */
export const PARTITION_DRILLS: readonly Drill[] = [partitioned('prefill'), partitioned('decode')];
