/** A process whose device hangs ends all the same, with its exit code. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { pathToFileURL } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const LIMIT_MS = 120_000;

test('at the exit of a process a run that hangs does not hold it', { timeout: LIMIT_MS }, async () => {
  const module = pathToFileURL(join(PACKAGE_ROOT, 'dist/services/lib/engine/ort-exit.js'));
  // A call that never returns, on a thread of Node's pool, as those of the runtime are.
  const program = `
    import koffi from 'koffi';
    const { endAlthoughHung } = await import('${module}');
    process.on('exit', () => console.log('others had their turn'));
    endAlthoughHung(() => true);
    koffi.load('libc.so.6').func('pause', 'int', []).async(() => {});
    process.exit(3);
  `;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], { cwd: PACKAGE_ROOT });
  onTestFinished(() => void child.kill('SIGKILL'));
  const said = text(child.stdout);
  const [code] = await once(child, 'exit');
  expect(await said).toBe('others had their turn\n');
  expect(code).toBe(3);
});
