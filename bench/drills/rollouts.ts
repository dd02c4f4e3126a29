/**
 * Rollouts as a cluster makes them: each process of a role leaves and comes back, in turn, while requests arrive. The
 * times are those of the Helm chart in deploy/helm. Unlike a strike, a rollout may cost no request anything.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Flags, Role } from '../../services/supervisor.ts';
import type { Drill, Scene } from './scene.ts';
import { comeBack, untilBusy } from './strikes.ts';
import { strikeUploads } from './struck-uploads.ts';

/** The times of the chart's values: `shutdown` and `gateway.requestTimeoutMs`, in ms. */
export const CHART_TIMES = {
  gatewayPreStopMs: 10_000,
  workerPreStopMs: 5_000,
  drainTimeoutMs: 70_000,
  requestTimeoutMs: 60_000,
} as const;

/** Settings that give the services of a fleet the chart's times. */
export const ROLLOUT_FLAGS: Readonly<Record<'each' | 'gateway', Flags>> = {
  each: { drainTimeoutMs: CHART_TIMES.drainTimeoutMs },
  gateway: { requestTimeoutMs: CHART_TIMES.requestTimeoutMs },
};

/**
 * Each member of a role leaves while it has work: balancers forget it, preStop passes, it drains, and is started again.
 * @param awayMs time for which it stays away: a pool that is scaled down.
 * @throws ServingError worker_lost when a member does not drain with exit code 0 or does not start.
 */
export async function rollEach(
  { fleet, mark, burst }: Pick<Scene, 'fleet' | 'mark' | 'burst'>,
  role: Role,
  preStopMs: number,
  awayMs = 0,
): Promise<string> {
  const members = fleet.of(role);
  for (const [i, member] of members.entries()) {
    const usable = await fleet.usable();
    const mended = mark();
    if (role === 'gateway') {
      // Many connections lead to it when balancers forget it. Clients keep them, and send on them just as it stops.
      await burst();
      fleet.balance(members[(i + 1) % members.length]!);
      await sleep(preStopMs);
      void burst();
    } else {
      await sleep(preStopMs);
      void burst();
      await untilBusy(fleet, member);
    }
    await member.process.restart(awayMs);
    await comeBack(fleet, member, usable);
    mended();
  }
  return `${members.length} drained with exit code 0`;
}

/** How long a member goes on serving after balancers and name servers were told that it leaves, in ms. */
const preStopOf = (role: Role) => (role === 'gateway' ? CHART_TIMES.gatewayPreStopMs : CHART_TIMES.workerPreStopMs);

const rolled = (role: Role): Drill => ({
  name: `rolling restart of ${role}`,
  disturb: (scene) => rollEach(scene, role, preStopOf(role)),
});

const scaledDown = (role: Role): Drill => ({
  name: `scale-down of ${role}`,
  disturb: (scene) => rollEach(scene, role, preStopOf(role), 1000 * scene.seconds),
});

/** The indexer is told to stop while it takes an upload. After preStop the upload might be over. */
const rolledIndexer: Drill = {
  name: 'rolling restart of indexer',
  disturb: (scene) => strikeUploads(scene, (member) => member.process.restart(), 1),
};

/** Drills on two gateways behind a balancer, with pools for prefill and decode. */
export const ROLLOUT_DRILLS: readonly Drill[] = [
  rolled('gateway'),
  rolled('prefill'),
  rolled('decode'),
  rolledIndexer,
  scaledDown('gateway'),
  scaledDown('prefill'),
  scaledDown('decode'),
];

/** The same on colocated workers. */
export const COLOCATED_ROLLOUT_DRILLS: readonly Drill[] = [rolled('colocated'), scaledDown('colocated')];
