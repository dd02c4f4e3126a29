import { execFile } from 'node:child_process';
import { getPriority } from 'node:os';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import { decodeNice } from '../../services/supervisor.ts';
import { startTestSystem, TINY_CODER } from '../support/system.ts';

const run = promisify(execFile);
/** Numbers of sched(7). */
const OTHERS = 0;
const IDLE_POLICY = 5;
const PRIORITY = JSON.stringify(new URL('../../dist/services/lib/process/priority.js', import.meta.url).href);

/** Niceness and scheduling policy of the threads of a process that has stepped back, each pair once. */
async function threadsAfter(nice: number): Promise<[nice: number, policy: number][]> {
  const script = `
    import { readdirSync, readFileSync } from 'node:fs';
    import { readFile } from 'node:fs/promises';
    import { getPriority } from 'node:os';
    import { Worker } from 'node:worker_threads';
    import { stepBack } from ${PRIORITY};
    stepBack(${nice});
    await readFile('/proc/self/stat');
    const later = new Worker('setInterval(() => {}, 1_000)', { eval: true });
    await new Promise((online) => later.once('online', online));
    const threads = process.platform === 'linux' ? readdirSync('/proc/self/task').map(Number) : [0];
    // Field 41 of proc(5); a name in brackets is the second.
    const policyOf = (thread) =>
      thread === 0 ? 0 : Number(readFileSync('/proc/self/task/' + thread + '/stat', 'utf8').split(') ')[1].split(' ')[38]);
    const pairs = threads.map((thread) => JSON.stringify([getPriority(thread), policyOf(thread)]));
    console.log('[' + [...new Set(pairs)] + ']');
    process.exit();
  `;
  const { stdout } = await run(process.execPath, ['--input-type=module', '-e', script]);
  return JSON.parse(stdout);
}

test('all threads of a process that steps back do so, those that it starts later too', async () => {
  const nice = Math.min(19, getPriority() + 3);
  expect(await threadsAfter(nice)).toEqual([[nice, OTHERS]]);
});

test('a process behind all others has the idle policy in all threads, or else the lowest priority', async () => {
  const allowed = await run('chrt', ['--idle', '0', 'true']).then(
    () => true,
    () => false,
  );
  expect(await threadsAfter(20)).toEqual([[19, allowed ? IDLE_POLICY : OTHERS]]);
});

test('decode workers step back behind the prefill workers of their machine, unless none is to step back', async () => {
  expect([0, 1, 5, 17, 20].map(decodeNice)).toEqual([0, 6, 10, 19, 20]);
  const nice = getPriority() + 2;
  const system = await startTestSystem(TINY_CODER, { nice });
  onTestFinished(() => system.close());
  const priorities = system.processes.map(({ name, pid }) => [name, getPriority(pid)]);
  expect(Object.fromEntries(priorities)).toMatchObject({ 'prefill-0': nice, 'decode-0': decodeNice(nice) });
});
