/** Files are for the user that runs a process alone, also those that an earlier version left open. */
import { execFile } from 'node:child_process';
import { chmod, lstat, mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { beforeEach, expect, test, vi } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { narrowedInWords, narrowWithin } from '../../services/lib/process/private-files.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { temporaryFolder } from '../support/models.ts';

const parent = await temporaryFolder();
const dir = join(parent, 'data');
const modeOf = async (path: string) => (await lstat(join(parent, path))).mode & 0o777;

beforeEach(async () => {
  await rm(dir, { recursive: true, force: true });
  await mkdir(join(dir, 'store'), { recursive: true });
  await writeFile(join(dir, 'store', 'data.mdb'), '');
  await writeFile(join(parent, 'elsewhere'), '');
  for (const path of ['data', 'data/store', 'elsewhere']) await chmod(join(parent, path), 0o775);
  await chmod(join(dir, 'store', 'data.mdb'), 0o646);
});

test('a folder is taken away from others with all that is in it, and links are not followed', async () => {
  await symlink(join(parent, 'elsewhere'), join(dir, 'link'));
  expect(await narrowWithin(dir, ['store', 'link', 'missing'])).toEqual({ narrowed: 3, foreign: [] });
  expect([await modeOf('data'), await modeOf('data/store'), await modeOf('data/store/data.mdb')]).toEqual([
    0o700, 0o700, 0o600,
  ]);
  expect(await modeOf('elsewhere')).toBe(0o775);
  expect(await narrowWithin(dir, ['store', 'link'])).toEqual({ narrowed: 0, foreign: [] });
  expect(await narrowWithin(join(parent, 'missing'), ['store'])).toEqual({ narrowed: 0, foreign: [] });
});

test('of a folder that holds other things too only what is the system’s own is narrowed', async () => {
  await writeFile(join(dir, 'letter.txt'), '');
  await chmod(join(dir, 'letter.txt'), 0o644);
  expect(await narrowWithin(dir, ['store', 'logs'])).toEqual({ narrowed: 2, foreign: [] });
  expect([await modeOf('data'), await modeOf('data/letter.txt'), await modeOf('data/store')]).toEqual([
    0o775, 0o644, 0o700,
  ]);
});

test('a store that others could read is narrowed when it is opened, which is logged once', async () => {
  const log = { warn: vi.fn() };
  for (const _ of ['first', 'second']) {
    const store = await openStore(`lmdb:${join(dir, 'store')}`, 'serving', log);
    await store.close();
    await chmod(join(dir, 'store', 'lock.mdb'), 0o600); // this process has not said that its files are private
  }
  expect(log.warn.mock.calls).toEqual([
    [{ store: join(dir, 'store') }, expect.stringContaining('could use 2 files and folders')],
  ]);
  expect(await modeOf('data/store/data.mdb')).toBe(0o600);
});

test('files of another user are named with the remedy, and nothing is said where all is well', () => {
  expect(narrowedInWords('/data', { narrowed: 0, foreign: ['/data/x'] })).toMatch(
    /use \/data\/x, .*another user.*chmod/,
  );
  expect(narrowedInWords('/data', { narrowed: 0, foreign: [] })).toBeUndefined();
});

/** The mask of a process that runs the command with these words: it is read while --help is printed. */
async function maskOf(...words: string[]): Promise<string> {
  const probe = "process.on('exit', () => process.stderr.write('mask ' + process.umask().toString(8)))";
  const preload = `data:text/javascript,process.umask(0o022);${probe}`;
  const cli = join(PACKAGE_ROOT, 'dist/services/cli.js');
  const { stderr } = await promisify(execFile)(process.execPath, ['--import', preload, cli, ...words, '--help']);
  return /mask (\d+)/.exec(stderr)![1]!;
}

test.each(['up', 'gateway', 'prefill', 'decode', 'colocated', 'indexer', 'index', 'demo'])(
  'files that %s makes are for its user alone',
  async (word) => {
    expect(await maskOf(word)).toBe('77');
  },
);

test.each(['export', 'synth', 'bench'])('files that %s makes follow the user’s own mask', async (word) => {
  expect(await maskOf(word)).toBe('22');
});
