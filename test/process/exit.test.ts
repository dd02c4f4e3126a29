/** Real processes that cannot end by themselves, or whose starter is gone. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const LIMIT = 120_000;
const EXIT = JSON.stringify(join(PACKAGE_ROOT, 'dist/services/lib/process/exit.js'));

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-exit-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

/** Runs a program of ours, with the lines of its output. */
async function run(source: string, command = process.execPath, words = ['main.mjs']) {
  await writeFile(join(dir, 'main.mjs'), source);
  const child = spawn(command, words, { cwd: dir, stdio: ['ignore', 'pipe', 'inherit'], detached: true });
  onTestFinished(() => {
    try {
      process.kill(-child.pid!, 'SIGKILL');
    } catch {
      // It has ended, as it should.
    }
  });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  return { child, line: async () => (await lines.next()).value as string | undefined };
}

test('a process whose exit hangs is killed', { timeout: LIMIT }, async () => {
  // The last exit handler never returns, as a native library's clean-up might not.
  const { child } = await run(`
    import { killIfExitHangs } from ${EXIT};
    killIfExitHangs(200);
    process.on('exit', () => { for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0); });
    process.exit(0);
  `);
  expect(await once(child, 'exit')).toEqual([null, 'SIGKILL']);
});

test('a process that can exit does so with its own code', { timeout: LIMIT }, async () => {
  const { child } = await run(`
    import { killIfExitHangs } from ${EXIT};
    killIfExitHangs(200);
    process.exitCode = 3;
  `);
  expect(await once(child, 'exit')).toEqual([3, null]);
});

test('a command that npm started learns that npm is gone, although its shell is not told', {
  timeout: LIMIT,
}, async () => {
  await writeFile(
    join(dir, 'package.json'),
    JSON.stringify({ name: 'x', version: '1.0.0', scripts: { start: `true && ${process.execPath} main.mjs` } }),
  );
  const { child, line } = await run(
    `
    import { orphaned } from ${EXIT};
    orphaned('gone').addEventListener('abort', () => { console.log('orphaned'); process.exit(0); });
    setInterval(() => {}, 1000);
    console.log('running');
  `,
    'npm',
    ['start', '--silent'],
  );
  expect(await line()).toBe('running');
  child.kill('SIGKILL');
  expect(await line()).toBe('orphaned');
});
