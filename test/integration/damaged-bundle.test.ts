/**
 * A bundle with one bit flipped in a weight: the process that serves it finds out and ends, and says which file it is.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, open, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const LIMIT = 300_000;

/** Runs a command on a bundle with one flipped bit, to its end. */
async function runDamaged(command: string, more: (dir: string) => string[] = () => []) {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-damaged-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const bundle = join(dir, 'bundle');
  await exportBundle({ llm: join(PACKAGE_ROOT, 'models', 'tiny-coder'), to: bundle, precision: 'fp32' });
  await flipBit(join(bundle, 'llm', 'model.bin'));
  const words = [command, '--model', bundle, '--port', '0', '--prepacked', 'off', ...more(dir)];
  const child = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist/services/cli.js'), ...words]);
  onTestFinished(() => void child.kill('SIGKILL'));
  let said = '';
  child.stderr.on('data', (text) => {
    said += text;
  });
  return { exit: await once(child, 'exit'), said };
}

test.each(['decode', 'colocated', 'prefill'])(
  'a %s process that serves a damaged bundle ends with bundle_invalid',
  { timeout: LIMIT },
  async (role) => {
    const { exit, said } = await runDamaged(role);
    expect(exit).toEqual([78, null]);
    expect(said).toContain('"code":"bundle_invalid"');
    expect(said).toContain('llm/model.bin is damaged');
  },
);

test('up stops with the reason instead of starting the damaged worker again and again', {
  timeout: LIMIT,
}, async () => {
  const { exit, said } = await runDamaged('up', (dir) => ['--data', join(dir, 'data')]);
  expect(exit).toEqual([78, null]);
  expect(said).toMatch(/llavacode: bundle_invalid: \S+: .*llm\/model\.bin is damaged/);
  expect(said).not.toContain('starting it again');
});

async function flipBit(path: string): Promise<void> {
  const position = Math.floor((await stat(path)).size / 2);
  const file = await open(path, 'r+');
  try {
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, position);
    byte[0]! ^= 1;
    await file.write(byte, 0, 1, position);
  } finally {
    await file.close();
  }
}
