/** LMDB on a full disk, simulated by another process whose files may not grow. */
import { execFile } from 'node:child_process';
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, onTestFinished, test, vi } from 'vitest';
import { openStore } from '../../../services/lib/rag/store/open-store.ts';

vi.setConfig({ testTimeout: 300_000 });

/** Runs a process to its end; it does not outlive the test. */
function run(file: string, args: readonly string[]) {
  const running = promisify(execFile)(file, args);
  onTestFinished(() => void running.child.kill('SIGKILL'));
  return running;
}
const WRITER = fileURLToPath(new URL('lmdb-writer.mjs', import.meta.url));
const REPO = 'acme/shop';

test('on a full disk a writer fails with a coded error, readers keep the version that was there, and a later writer works', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-full-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const write = (version: string) => [process.execPath, WRITER, dir, REPO, version, 'publish'];
  await run(process.execPath, write('1').slice(1));
  const sizes = await Promise.all((await readdir(dir)).map(async (name) => (await stat(join(dir, name))).size));
  const blocks = Math.ceil((Math.max(...sizes) + 256 * 1024) / 512);
  const full = run('sh', ['-c', `ulimit -f ${blocks}; exec "$@"`, 'sh', ...write('2')]);
  await expect(full).rejects.toMatchObject({ stderr: expect.stringMatching(/code: 'store_unavailable'/) });
  const store = await openStore(`lmdb:${dir}`);
  onTestFinished(() => store.close());
  expect(await store.head(REPO)).toMatchObject({ version: '1'.repeat(16) });
  const afterIt = await vi.waitUntil(() => store.lock(REPO, 1_000).catch(() => undefined), { timeout: 120_000 });
  await afterIt.release(); // the lock of the writer that failed has run out
  await run(process.execPath, write('3').slice(1));
  expect(await store.head(REPO)).toMatchObject({ version: '3'.repeat(16) });
});
