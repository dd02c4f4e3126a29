import { execFile } from 'node:child_process';
import { getPriority } from 'node:os';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import { decodeNice } from '../../services/supervisor.ts';
import { startTestSystem, TINY_CODER } from '../support/system.ts';

const PRIORITY = JSON.stringify(new URL('../../dist/services/lib/process/priority.js', import.meta.url).href);

test('all threads of a process that steps back do so, those that it starts later too', async () => {
  const mine = getPriority();
  const script = `
    import { readdirSync } from 'node:fs';
    import { readFile } from 'node:fs/promises';
    import { getPriority } from 'node:os';
    import { Worker } from 'node:worker_threads';
    import { stepBack } from ${PRIORITY};
    stepBack(${Math.min(19, mine + 3)});
    await readFile('/proc/self/stat');
    const later = new Worker('setInterval(() => {}, 1_000)', { eval: true });
    await new Promise((online) => later.once('online', online));
    const threads = process.platform === 'linux' ? readdirSync('/proc/self/task').map(Number) : [0];
    console.log(JSON.stringify([...new Set(threads.map((thread) => getPriority(thread)))]));
    process.exit();
  `;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script]);
  expect(JSON.parse(stdout)).toEqual([Math.min(19, mine + 3)]);
});

test('decode workers step back behind the prefill workers of their machine, unless none is to step back', async () => {
  expect([0, 1, 5, 17].map(decodeNice)).toEqual([0, 6, 10, 19]);
  const nice = getPriority() + 2;
  const system = await startTestSystem(TINY_CODER, { nice });
  onTestFinished(() => system.close());
  const priorities = system.processes.map(({ name, pid }) => [name, getPriority(pid)]);
  expect(Object.fromEntries(priorities)).toMatchObject({ 'prefill-0': nice, 'decode-0': decodeNice(nice) });
});
