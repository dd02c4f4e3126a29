/** LMDB on a disk that is full: another process may not let its files grow. What it says, and what is left of the store. */
import { execFile } from 'node:child_process';
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import { openStore } from '../../../services/lib/rag/store/open-store.ts';

const run = promisify(execFile);
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
  await run(process.execPath, write('3').slice(1));
  expect(await store.head(REPO)).toMatchObject({ version: '3'.repeat(16) });
});
