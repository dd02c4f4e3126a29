/** Strikes: disturbances of one process of a system, or of its link, while it works on requests. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Role } from '../../services/supervisor.ts';
import { type Fleet, type Member, STALL_TIMEOUT_MS } from './fleet.ts';
import type { Scene } from './scene.ts';

/** Duration of a strike: long enough for the gateway to consider the worker lost. */
export const HOLD_MS = STALL_TIMEOUT_MS + 2_000;
export const ANSWER_TIMEOUT_MS = 30_000;

export type Strike = (member: Member) => Promise<void>;

const signal = (member: Member, name: NodeJS.Signals) => {
  if (member.process.pid !== undefined) process.kill(member.process.pid, name);
};

export const kill: Strike = async (member) => {
  const { pid } = member.process;
  signal(member, 'SIGKILL');
  // The supervisor starts another process in its place.
  while (member.process.pid === pid) await sleep(20);
};

export const stop: Strike = async (member) => {
  signal(member, 'SIGSTOP');
  await sleep(HOLD_MS);
  signal(member, 'SIGCONT');
};

export const deaden: Strike = async ({ link }) => {
  link!.state = 'dead';
  await sleep(HOLD_MS);
  link!.state = 'up';
};

export const unplug: Strike = async ({ port }) => {
  await port!.cut();
  await sleep(HOLD_MS);
  await port!.heal();
};

/** Strikes the members of a role in turn, at random moments. Each strike waits until the one before it is mended. */
export async function strikeEach(scene: Scene, role: Role, strike: Strike): Promise<string | undefined> {
  const { fleet, random, count, mark, burst } = scene;
  const members = fleet.of(role);
  // Requests of a gateway cannot continue anywhere else.
  const replays = async () => (role === 'gateway' ? 0 : fleet.replays());
  const moved: number[] = [];
  for (let i = 0; i < count; i++) {
    await sleep(100 + random.uniform() * 400);
    const member = members[i % members.length]!;
    const [before, usable] = [await replays(), await fleet.usable()];
    void burst();
    await untilBusy(fleet, member);
    const mended = mark();
    await strike(member);
    await comeBack(fleet, member, usable);
    mended();
    moved.push((await replays()) - before);
  }
  if (role === 'gateway') return undefined;
  const found = `${moved.join(' + ')} requests went on at the other worker`;
  if (moved.includes(0)) throw new Error(`${found}: a strike hit no request`);
  return found;
}

/** Waits until a member has work. Streams are short: at random moments, most strikes would not hit any. */
export async function untilBusy(fleet: Fleet, member: Member): Promise<void> {
  const deadlineMs = performance.now() + ANSWER_TIMEOUT_MS;
  for (;;) {
    // A prefill worker counts as busy when KV is staged, which begins with the first chunk of a prompt.
    const { running = 0, stagedBytes = 0 } = (await fleet.vitals(member)) ?? {};
    if (running + stagedBytes > 0) return;
    if (performance.now() > deadlineMs)
      throw new Error(`${member.process.name} got no work within ${ANSWER_TIMEOUT_MS} ms`);
    await sleep(5);
  }
}

/**
 * Waits until a member answers again.
 * @param usable number of workers that the gateway must use again: it may find one later than that answers us.
 */
export async function comeBack(fleet: Fleet, member: Member, usable = 0): Promise<void> {
  const deadlineMs = performance.now() + ANSWER_TIMEOUT_MS;
  while (performance.now() < deadlineMs) {
    if ((await fleet.answers(member)) && (await fleet.usable()) >= usable) return;
    await sleep(50);
  }
  throw new Error(`${member.process.name} did not come back within ${ANSWER_TIMEOUT_MS} ms`);
}
