/** The process that `bench index` measures: it runs from `dist/`. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { EncoderAnswer, EncoderTask } from '../../../bench/indexing/encoder-child.ts';
import { BATCHINGS } from '../../../bench/indexing/result.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { temporaryFolder } from '../../support/models.ts';

const bundle = join(await temporaryFolder(), 'bundle');
await exportBundle({ llm: join(PACKAGE_ROOT, 'models', 'tiny-coder'), to: bundle, precision: 'fp32' });
const chunks = Array.from({ length: 6 }, (_, i) => ({ path: 'a.py', text: 'x = x + 1\n'.repeat(1 + ((i * 5) % 7)) }));
const child: ChildProcess = fork(join(PACKAGE_ROOT, 'dist/bench/indexing/encoder-child.js'));
afterAll(() => void child.kill('SIGKILL'));

async function ask(message: EncoderTask | 'start'): Promise<EncoderAnswer> {
  const answered = once(child, 'message');
  child.send(message);
  return ((await answered) as [EncoderAnswer])[0];
}

test('a worker encodes the same tokens however it batches them, and says how long it took', async () => {
  const tokens: number[] = [];
  for (const batching of BATCHINGS) {
    expect(await ask({ bundle, threads: 1, batching, chunks })).toEqual({ ready: true });
    const done = await ask('start');
    if (!('tokens' in done)) throw new Error(`not a measurement: ${JSON.stringify(done)}`);
    expect(done.seconds).toBeGreaterThan(0);
    expect(done.cpuSeconds).toBeGreaterThan(0);
    tokens.push(done.tokens);
  }
  expect(tokens[0]).toBeGreaterThan(chunks.length);
  expect(new Set(tokens).size).toBe(1);
}, 300_000);

test('a worker that cannot load its bundle says why', async () => {
  const task: EncoderTask = { bundle: join(bundle, 'missing'), threads: 1, batching: 'by length', chunks };
  expect(await ask(task)).toEqual({ error: expect.stringContaining('missing') });
}, 300_000);
