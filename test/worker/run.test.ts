/** A real worker process with real ports, on the built files (`npm test` builds first). */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import type { ReadyMessage } from '../../services/lib/process/supervised.ts';
import { connectDecode } from '../../services/lib/rpc/contract.ts';

const FIXTURE = join(PACKAGE_ROOT, 'dist/test/worker/run.fixture.js');
const TIMEOUT_MS = 120_000;
const NEVER = new AbortController().signal;

let child: ChildProcess;
let ready: ReadyMessage;
let log = '';

beforeEach(async () => {
  log = '';
  child = fork(FIXTURE, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] });
  child.stderr!.on('data', (text: Buffer) => {
    log += text;
  });
  [ready] = (await once(child, 'message')) as [ReadyMessage];
}, TIMEOUT_MS);
afterEach(() => {
  child.kill('SIGKILL');
});

test('a worker process serves its service at the address that it reports', { timeout: TIMEOUT_MS }, async () => {
  const client = connectDecode(ready.address);
  try {
    await expect(client.describe(NEVER)).rejects.toMatchObject({
      code: 'saturated',
      message: `${ready.address}, draining: false`,
    });
  } finally {
    client.close();
  }
});

test('a worker process brings its gauges up to date before each scrape', { timeout: TIMEOUT_MS }, async () => {
  const scrape = await (await fetch(`http://${ready.metricsAddress}/metrics`)).text();
  expect(scrape).toMatch(/llavacode:\w+\{[^}]*service="prefill",model_name="a-model"[^}]*\} 42/);
  expect((await fetch(`http://${ready.metricsAddress}/readyz`)).status).toBe(200);
});

test('a worker process that gets SIGTERM stops in order and exits with 0', { timeout: TIMEOUT_MS }, async () => {
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  expect(await exited).toEqual([0, null]);
  const steps = log.split('\n').flatMap((line) => (line === '' ? [] : [(JSON.parse(line) as { msg: string }).msg]));
  expect(steps).toEqual(['ready', 'draining', 'own step', 'stopped']);
});

test('a worker process whose device is lost says why, stops in order and exits with an error', {
  timeout: TIMEOUT_MS,
}, async () => {
  const exited = once(child, 'exit');
  child.send('lose the device');
  expect(await exited).toEqual([1, null]);
  const lines = log.split('\n').flatMap((line) => (line === '' ? [] : [JSON.parse(line) as Record<string, unknown>]));
  expect(lines.map(({ msg }) => msg)).toEqual([
    'ready',
    'this process cannot go on: stopping',
    'draining',
    'own step',
    'stopped',
  ]);
  expect(lines[1]).toMatchObject({ err: { code: 'runtime_failed', message: 'the test GPU failed twice' } });
});
