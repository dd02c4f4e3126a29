/**
 * A bundle with one bit flipped in a weight: the process that was to serve it, or serves it, ends, and says which file
 * it is.
 */
import { spawn } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, open, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const LIMIT = 300_000;

async function exportedBundle() {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-damaged-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const bundle = join(dir, 'bundle');
  await exportBundle({ llm: join(PACKAGE_ROOT, 'models', 'tiny-coder'), to: bundle, precision: 'fp32' });
  return { dir, bundle };
}

/** Starts a command on a bundle. `ended` is how it ends, and all that it said. */
function start(command: string, bundle: string, more: readonly string[] = []) {
  const words = [command, '--model', bundle, '--port', '0', ...more];
  const child = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist/services/cli.js'), ...words]);
  onTestFinished(() => void child.kill('SIGKILL'));
  let said = '';
  child.stderr.on('data', (text) => {
    said += text;
  });
  const ended = once(child, 'exit').then((exit) => ({ exit, said }));
  return { ended, said: () => said, stop: () => void child.kill('SIGTERM') };
}

/** Runs a command on a bundle with one flipped bit, to its end. */
async function runDamaged(command: string, more: (dir: string) => string[] = () => []) {
  const { dir, bundle } = await exportedBundle();
  await flipBit(join(bundle, 'llm', 'model.bin'));
  return start(command, bundle, ['--prepacked', 'off', ...more(dir)]).ended;
}

test.each(['decode', 'colocated', 'prefill'])(
  'a %s process with a damaged bundle ends with bundle_invalid, and never serves',
  { timeout: LIMIT },
  async (role) => {
    const { exit, said } = await runDamaged(role);
    expect(exit).toEqual([78, null]);
    expect(said).toContain('"code":"bundle_invalid"');
    expect(said).toContain('llm/model.bin is damaged');
    expect(said).not.toContain('"msg":"ready"');
  },
);

test.each([
  ['weight', 'bundle_invalid', 78, async (bundle: string) => join(bundle, 'llm', 'model.bin')],
  ['prepacked weight', 'runtime_failed', 1, async (bundle: string) => prepackedWeights(bundle)],
] as const)(
  'a process whose %s is changed in its place while it serves ends with %s',
  { timeout: LIMIT },
  async (_, code, exitCode, file) => {
    const { bundle } = await exportedBundle();
    const { ended, said } = start('colocated', bundle);
    await vi.waitUntil(() => said().includes('"msg":"ready"'), { timeout: LIMIT });
    await flipBit(await file(bundle));
    expect((await ended).exit).toEqual([exitCode, null]);
    expect(said()).toContain(`"code":"${code}"`);
    expect(said()).toContain('model.bin is damaged');
  },
);

test('prepacked weights that were changed between two starts are made again', { timeout: LIMIT }, async () => {
  const { bundle } = await exportedBundle();
  const first = start('colocated', bundle);
  await vi.waitUntil(() => first.said().includes('"msg":"ready"'), { timeout: LIMIT });
  const weights = await prepackedWeights(bundle);
  const before = await readFile(weights);
  first.stop();
  await first.ended;
  await flipBit(weights);
  const second = start('colocated', bundle);
  await vi.waitUntil(() => second.said().includes('"msg":"ready"'), { timeout: LIMIT });
  expect((await readFile(weights)).equals(before)).toBe(true);
  expect(second.said()).toMatch(/model\.bin is damaged.*weights prepacked for this CPU/);
});

test('up stops with the reason instead of starting the damaged worker again and again', {
  timeout: LIMIT,
}, async () => {
  const { exit, said } = await runDamaged('up', (dir) => ['--data', join(dir, 'data')]);
  expect(exit).toEqual([78, null]);
  expect(said).toMatch(/llavacode: bundle_invalid: \S+: .*llm\/model\.bin is damaged/);
  expect(said).not.toContain('starting it again');
});

async function prepackedWeights(bundle: string): Promise<string> {
  const [folder] = await readdir(join(bundle, 'prepacked'));
  return join(bundle, 'prepacked', folder!, 'model.bin');
}

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

test.each(['decode', 'colocated', 'prefill', 'indexer', 'gateway'])(
  'a %s process that requires a signature does not serve a bundle without one',
  { timeout: LIMIT },
  async (role) => {
    const { dir, bundle } = await exportedBundle();
    const pub = join(dir, 'public.pem');
    await writeFile(pub, generateKeyPairSync('ed25519').publicKey.export({ type: 'spki', format: 'pem' }));
    const store = ['--store', `lmdb:${join(dir, 'store')}`];
    const workers = ['--prefill-workers', '127.0.0.1:1', '--decode-workers', '127.0.0.1:1', ...store];
    const own = { gateway: workers, indexer: store }[role] ?? [];
    const { exit, said } = await start(role, bundle, ['--require-signed', pub, ...own]).ended;
    expect(exit).toEqual([78, null]);
    expect(said).toContain('it is not signed');
    expect(said).not.toContain('"msg":"ready"');
  },
);
