import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { CHART_TIMES, COLOCATED_ROLLOUT_DRILLS, ROLLOUT_DRILLS, rollEach } from '../../../bench/drills/rollouts.ts';
import { TIMEOUT_MS } from '../../../bench/drills/streams.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import type { Role } from '../../../services/supervisor.ts';
import { scene } from '../../support/drill-scene.ts';

/** A scene whose members note that they restart, and whose balancer notes where it leads. */
function rollout(restart: (name: string) => Promise<void> = async () => {}) {
  const made = scene({});
  const { fleet } = made.scene;
  const member = (role: Role, i: number) => ({
    role,
    process: {
      name: `${role}-${i}`,
      restart: async (awayMs: number) => {
        made.done.push(`${role}-${i} away ${awayMs}`);
        await restart(`${role}-${i}`);
      },
    },
  });
  const rolling = Object.assign(fleet, {
    of: (role: Role) => [member(role, 0), member(role, 1)],
    balance: ({ process }: { process: { name: string } }) => made.done.push(`balanced to ${process.name}`),
  });
  return { ...made, scene: { ...made.scene, fleet: rolling } as typeof made.scene };
}

describe('a rollout', () => {
  test('each member of a pool leaves while it has work, and the next one when it is back', async () => {
    const { scene: given, done } = rollout();
    expect(await rollEach(given, 'decode', 0, 7)).toBe('2 drained with exit code 0');
    const each = (i: number) => ['marked', 'burst', `decode-${i} away 7`, 'mended'];
    expect(done).toEqual([...each(0), ...each(1)]);
  });

  test('a gateway leaves when the balancer leads to the other one, while clients send on the connections that they have', async () => {
    const { scene: given, done } = rollout();
    await rollEach(given, 'gateway', 0);
    const each = (i: number) => {
      return ['marked', 'burst', `balanced to gateway-${1 - i}`, 'burst', `gateway-${i} away 0`, 'mended'];
    };
    expect(done).toEqual([...each(0), ...each(1)]);
  });

  test('a member that does not drain ends the rollout', async () => {
    const { scene: given } = rollout(async (name) => {
      throw new Error(`${name} did not drain`);
    });
    await expect(rollEach(given, 'prefill', 0)).rejects.toThrow('prefill-0 did not drain');
  });

  test('clients wait longer than the gateway of a rollout does, so that it says why a request failed', () => {
    expect(TIMEOUT_MS).toBeGreaterThan(CHART_TIMES.requestTimeoutMs);
  });

  const values = async () =>
    parse(await readFile(join(PACKAGE_ROOT, 'deploy/helm/llavacode/values.yaml'), 'utf8'), { merge: true });

  test('every pool that the chart scales is scaled down, and each of its Deployments is rolled', async () => {
    const { autoscaling } = await values();
    const pools = Object.keys(autoscaling).filter((each) => typeof autoscaling[each] === 'object');
    expect(pools).toContain('gateway');
    const names = [...ROLLOUT_DRILLS, ...COLOCATED_ROLLOUT_DRILLS].map(({ name }) => name);
    expect(names).toEqual(expect.arrayContaining(pools.map((role) => `scale-down of ${role}`)));
    expect(names).toEqual(expect.arrayContaining([...pools, 'indexer'].map((role) => `rolling restart of ${role}`)));
  });

  test('a rollout has the times of the chart', async () => {
    const { shutdown, gateway } = await values();
    const { gatewayPreStopSeconds, workerPreStopSeconds, drainTimeoutMs } = shutdown;
    expect(CHART_TIMES).toEqual({
      gatewayPreStopMs: 1000 * gatewayPreStopSeconds,
      workerPreStopMs: 1000 * workerPreStopSeconds,
      drainTimeoutMs,
      requestTimeoutMs: gateway.requestTimeoutMs,
    });
  });
});
