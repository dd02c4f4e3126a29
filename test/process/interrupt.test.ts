/** What Ctrl-C and SIGTERM do to a command: real processes of the built files, which end by nothing else. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { expect, test, vi } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const MODULE = join(PACKAGE_ROOT, 'dist/services/lib/process/interrupt.js');
const TIMEOUT_MS = 60_000;

/** A process that says `ready`, and then does nothing but what the words do with its signal. */
function command(limit: string) {
  const script = `
    import { interruption } from ${JSON.stringify(MODULE)};
    const signal = interruption(${limit});
    signal.addEventListener('abort', () => console.log(signal.reason.message));
    setInterval(() => {}, 1000);
    console.log('ready');`;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  return { child, said: text(child.stdout), ready: once(child.stdout, 'data'), ended: once(child, 'exit') };
}

test('a second Ctrl-C ends the command at once, though it does not end by itself', {
  timeout: TIMEOUT_MS,
}, async () => {
  const { child, said, ready, ended } = command('');
  await ready;
  const isGone = () => {
    if (child.exitCode === null) child.kill('SIGINT');
    return child.exitCode !== null;
  };
  await vi.waitUntil(isGone, { timeout: TIMEOUT_MS });
  expect(await ended).toEqual([130, null]);
  expect(await said).toBe('ready\nstopped by SIGINT\n');
});

test('a command that does not end in its time is ended, and says so', { timeout: TIMEOUT_MS }, async () => {
  const { child, said, ready, ended } = command("{ ms: 20, onLate: () => console.log('late') }");
  await ready;
  child.kill('SIGTERM');
  expect(await ended).toEqual([143, null]);
  expect(await said).toBe('ready\nstopped by SIGTERM\nlate\n');
});
