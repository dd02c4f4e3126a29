/** The chart's pods as the drill of two hosts starts them: nothing but the folders of volumes differs. */
import { expect, test } from 'vitest';
import { type Chart, commandHere, readChart } from '../../../bench/drills/chart.ts';
import { CHART_TIMES } from '../../../bench/drills/rollouts.ts';
import { ofKind, resourcesOf } from '../../support/chart.ts';

async function chart(): Promise<Chart> {
  const read = await readChart();
  if (typeof read === 'string') throw new Error(read);
  return read;
}

type Words = Readonly<Record<string, readonly string[]>>;
/** The words of a command line that are not the same here, by role. */
const REPLACED: Words = {
  gateway: ['--model', '--rpc-secret-file', '--api-keys-file'],
  prefill: ['--model', '--rpc-secret-file', '--prepacked'],
  decode: ['--model', '--rpc-secret-file', '--prepacked'],
  indexer: ['--model', '--rpc-secret-file'],
};

test('pods get the command lines of the chart, with other folders in place of those of volumes', async () => {
  const { pods } = await chart();
  expect(pods.map(({ role }) => role)).toEqual(['gateway', 'prefill', 'decode', 'indexer']);
  for (const pod of pods) {
    const { args, env } = commandHere(pod, (mount) => `/here${mount}`);
    expect(args).toHaveLength(pod.args.length);
    const changed = pod.args.flatMap((word, i) => (word === args[i] ? [] : [[word, args[i]!] as const]));
    expect(changed.map(([word]) => word.split('=')[0])).toEqual(REPLACED[pod.role]);
    for (const [word, here] of changed) expect(here).toBe(word.replace('=', '=/here'));
    expect(Object.keys(env)).toEqual(Object.keys(pod.env));
    const { LLAVACODE_STORE, ...folders } = env;
    expect(LLAVACODE_STORE).toBe(pod.env['LLAVACODE_STORE']);
    expect(folders).toEqual({ XDG_CACHE_HOME: '/here/cache', TMPDIR: '/here/tmp' });
  }
});

test('a path that only begins like a folder of a volume is left alone', () => {
  const container = { args: ['x', '--a=/data', '--b=/data/c', '--d=/database', '--e=dns:a:1'], mounts: ['/data'] };
  const env = { A: '/data', B: '/database' };
  expect(commandHere({ ...container, env }, () => '/z')).toEqual({
    args: ['x', '--a=/z', '--b=/z/c', '--d=/database', '--e=dns:a:1'],
    env: { A: '/z', B: '/database' },
  });
});

test('pods have the ports, times and replicas of the rendering, and Services their names', async () => {
  const { pods, redis, services } = await chart();
  const resources = await resourcesOf('small');
  type Spec = { replicas: number; minReadySeconds: number; template: { spec: object } };
  const deployments = ofKind<Spec>(resources, 'Deployment').map(({ spec }) => spec);
  expect(pods.map(({ replicas, minReadyMs }) => [replicas, minReadyMs])).toEqual(
    deployments.map(({ replicas, minReadySeconds }) => [replicas, 1000 * minReadySeconds]),
  );
  for (const { role, port, metricsPort, preStopMs, graceMs, readyPath } of pods) {
    expect([port, metricsPort]).toEqual(role === 'gateway' ? [8000, 8000] : [9000, 9090]);
    expect(preStopMs).toBe(role === 'gateway' ? CHART_TIMES.gatewayPreStopMs : CHART_TIMES.workerPreStopMs);
    expect(graceMs).toBeGreaterThan(preStopMs + CHART_TIMES.drainTimeoutMs);
    expect(readyPath).toBe('/readyz');
  }
  expect(redis.args[0]).toBe('redis-server');
  for (const role of ['gateway', 'prefill', 'decode', 'indexer', 'redis'] as const) {
    expect(services.get(role)).toBe(`llavacode-${role}`);
  }
});

test('without the rendering it says what is lacking', async () => {
  expect(await readChart('/does/not/exist.yaml')).toMatch(/^needs the repository: .*small\.rendered\.yaml$/);
});
