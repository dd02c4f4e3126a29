/** The Prometheus of the bench of dashboards: a real one, over a target that moves. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { Prometheus } from '../../../bench/dashboards/prometheus.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { prometheusProgram } from '../../support/promtool.ts';

const RULES = join(PACKAGE_ROOT, 'deploy/observability/rules.yml');
const LIMIT = 240_000;

/** A process with one figure. @returns its address. */
async function processWith(figure: number): Promise<string> {
  const server = createServer((_, response) => response.end(`llavacode:store_circuit_open ${figure}\n`));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => server.closeAllConnections());
  onTestFinished(() => void server.close());
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

test('a process that comes back at another port is the same instance', { timeout: LIMIT }, async () => {
  const target = { job: 'gateway', name: 'gateway-0' };
  const [first, second] = [await processWith(1), await processWith(2)];
  const program = await prometheusProgram('prometheus');
  const prometheus = await Prometheus.start(program, RULES, [{ ...target, address: first }]);
  onTestFinished(() => prometheus.close());
  const fromS = Math.floor(Date.now() / 1000);
  const seen = async () => {
    const span = { fromS, toS: Math.ceil(Date.now() / 1000) + 1, stepS: 1 };
    const answers = await prometheus.ask('llavacode:store_circuit_open', span);
    return answers.map(({ labels, values }) => [
      labels['instance'],
      [...new Set(values)].filter((each) => each !== null),
    ]);
  };
  await vi.waitUntil(async () => (await seen()).length > 0, { timeout: LIMIT / 3, interval: 500 });
  expect(await seen()).toEqual([['gateway-0', [1]]]);
  await prometheus.scrape([{ ...target, address: second }]);
  await vi.waitUntil(async () => JSON.stringify(await seen()).includes('2'), { timeout: LIMIT / 3, interval: 500 });
  expect(await seen()).toEqual([['gateway-0', [1, 2]]]);
  await expect(prometheus.ask('no such(', { fromS, toS: fromS + 1, stepS: 1 })).rejects.toMatchObject({
    code: 'internal',
  });
});

test('a program that is not there is named with the remedy', async () => {
  await expect(Prometheus.start('/nowhere/prometheus', RULES, [])).rejects.toMatchObject({
    code: 'path_unusable',
    message: expect.stringContaining('--prometheus'),
  });
});
