/** The drill of a full disk: an index run fails with a named error, and the index of before is still served. */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { CLI } from '../system/cli.ts';
import type { Scene } from './scene.ts';

/** Bytes that the store may still grow by. */
const SPARE_BYTES = 64 * 1024;
const BLOCK_BYTES = 512;

export async function fillDisk({ store, bundle, mark }: Scene): Promise<string> {
  const dir = store.slice('lmdb:'.length);
  const sizes = await Promise.all((await readdir(dir)).map(async (name) => (await stat(join(dir, name))).size));
  const blocks = Math.ceil((Math.max(...sizes) + SPARE_BYTES) / BLOCK_BYTES);
  mark();
  const source = join(PACKAGE_ROOT, 'services');
  const args = [
    'index',
    '--name',
    'too-large',
    '--path',
    source,
    '--store',
    store,
    '--model',
    bundle,
    '--threads',
    '1',
  ];
  // A limit on the size of files works like a disk that is full for this process alone.
  const limited = ['-c', `ulimit -f ${blocks}; exec "$@"`, 'sh', process.execPath, CLI, ...args];
  const { exitCode, stderr } = await execa('sh', limited, { reject: false, timeout: 120_000 });
  const [, code] = /llavacode: (\w+):/.exec(stderr) ?? [];
  if (exitCode !== 1 || code !== 'store_unavailable') {
    throw new Error(`the index run ended with ${exitCode} (${code ?? stderr.slice(-200)}), not with store_unavailable`);
  }
  return 'the index run failed with store_unavailable';
}
