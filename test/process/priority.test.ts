import { execFile } from 'node:child_process';
import { getPriority } from 'node:os';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

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
