/** What `llavacode up` refuses before it starts anything, in words that name the setting, the reason and the remedy. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { ServingError } from '../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../services/lib/process/package-root.ts';
import { checkPlaces, type Places, repositoryName, tenantOfIndexes } from '../services/preflight.ts';

const CLI = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');
/** A process that starts takes long on a machine that is busy. */
const LIMIT = 300_000;
/** The user `nobody`: root may write everywhere. */
const NOBODY = 65534;

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-preflight-'));
  await chmod(dir, 0o755);
});
afterEach(() => rm(dir, { recursive: true, force: true }));

const places = (changed: Partial<Places> = {}): Places => ({
  host: '127.0.0.1',
  port: 0,
  data: join(dir, 'data'),
  store: `lmdb:${join(dir, 'store')}`,
  index: [],
  apiKeysFile: '',
  tlsCert: '',
  tlsKey: '',
  ...changed,
});

/** What a person reads of the refusal: its code, its message and its remedy. */
async function refusal(changed: Partial<Places>): Promise<{ code: string; message: string; remedy: string }> {
  const error: unknown = await checkPlaces(places(changed)).then(
    async (release) => {
      await release();
      return undefined;
    },
    (error: unknown) => error,
  );
  if (!(error instanceof ServingError)) throw new Error(`not refused: ${JSON.stringify(changed)}`, { cause: error });
  return { code: error.code, message: error.message, remedy: error.remedy };
}

/** Runs `task` as a user who is not root. */
async function unprivileged<T>(task: () => Promise<T>): Promise<T> {
  if (process.geteuid?.() !== 0) return task();
  process.seteuid?.(NOBODY);
  try {
    return await task();
  } finally {
    process.seteuid?.(0);
  }
}

describe('--data', () => {
  const remedy = /Correct the path/;

  test('is refused where it is a file, or lies in one', async () => {
    const file = join(dir, 'file');
    await writeFile(file, '');
    for (const data of [file, join(file, 'data')]) {
      expect(await refusal({ data })).toEqual({
        code: 'path_unusable',
        message: `--data ${data}: a part of it is a file where a folder is needed (ENOTDIR)`,
        remedy: expect.stringMatching(remedy),
      });
    }
  });

  test('is refused where the folder above it is not writable', async () => {
    const parent = join(dir, 'read-only');
    await mkdir(parent, { mode: 0o555 });
    const data = join(parent, 'data');
    expect(await unprivileged(() => refusal({ data }))).toEqual({
      code: 'path_unusable',
      message: `--data ${data}: this user has no permission for it (EACCES)`,
      remedy: expect.stringMatching(remedy),
    });
  });

  test('is refused where it is a folder that is not writable', async () => {
    const data = join(dir, 'data');
    await mkdir(join(data, 'logs'), { recursive: true });
    await chmod(data, 0o555);
    expect(await unprivileged(() => refusal({ data }))).toEqual({
      code: 'path_unusable',
      message: `--data ${data}: this user has no permission for it (EACCES)`,
      remedy: expect.stringMatching(remedy),
    });
  });

  test.runIf(process.platform === 'linux')('is refused under /proc, where nothing can be made', async () => {
    expect(await refusal({ data: '/proc/llavacode' })).toEqual({
      code: 'path_unusable',
      message: expect.stringMatching(/^--data \/proc\/llavacode: .+ \(E[A-Z]+\)$/),
      remedy: expect.stringMatching(remedy),
    });
  });
});

test('--index is refused where it is missing or a file', async () => {
  const file = join(dir, 'file');
  await writeFile(file, '');
  expect(await refusal({ index: [dir, join(dir, 'missing')] })).toEqual({
    code: 'path_unusable',
    message: `--index ${join(dir, 'missing')}: it does not exist (ENOENT)`,
    remedy: expect.stringMatching(/Correct the path/),
  });
  expect(await refusal({ index: [file] })).toEqual({
    code: 'path_unusable',
    message: `--index ${file}: it is not a folder`,
    remedy: expect.stringMatching(/Correct the path/),
  });
});

test.each([
  ['--api-keys-file', { apiKeysFile: '/nope/keys.json' }],
  ['--tls-cert', { tlsCert: '/nope/keys.json', tlsKey: '/nope/keys.json' }],
])('%s is refused where its file is missing, before anything starts', async (flag, changed) => {
  expect(await refusal(changed)).toMatchObject({
    code: 'config_invalid',
    message: `${flag} /nope/keys.json: it does not exist (ENOENT)`,
  });
});

test('repositories to index belong to the tenant of the keys, and are refused where keys name several', async () => {
  const keysOf = async (...tenants: string[]) => {
    const apiKeysFile = join(dir, 'keys.json');
    const keys = tenants.map((tenant, i) => ({ key_sha256: `${i}`.repeat(64), tenant, repos: ['*'] }));
    await writeFile(apiKeysFile, JSON.stringify(keys));
    return { apiKeysFile, index: [dir] };
  };
  expect(await tenantOfIndexes({ apiKeysFile: '', index: [dir] })).toBe('default');
  expect(await tenantOfIndexes(await keysOf('acme', 'acme'))).toBe('acme');
  expect(await tenantOfIndexes(await keysOf('acme', 'default'))).toBe('default');
  expect(await refusal(await keysOf('acme', 'umbrella'))).toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(/--index \S+: the keys of \S+ belong to 2 tenants/),
  });
});

test('--tls-cert without --tls-key is refused', async () => {
  const { message } = await refusal({ tlsCert: join(dir, 'cert.pem') });
  expect(message).toBe('--tls-key is missing: TLS needs a certificate and its key');
});

test('--store is refused where its folder cannot be made', async () => {
  await writeFile(join(dir, 'file'), '');
  const store = `lmdb:${join(dir, 'file', 'store')}`;
  expect(await refusal({ store })).toMatchObject({
    code: 'path_unusable',
    message: `--store ${store}: a part of it is a file where a folder is needed (ENOTDIR)`,
  });
});

describe('a mistake on the command line', () => {
  /** What the command says last, and its exit code. */
  async function said(...words: string[]): Promise<{ code: number; lines: string[] }> {
    const child = spawn(process.execPath, [CLI, ...words], { stdio: ['ignore', 'ignore', 'pipe'] });
    let text = '';
    child.stderr.on('data', (more: Buffer) => {
      text += more;
    });
    const [code] = await once(child, 'close');
    return { code, lines: text.trimEnd().split('\n') };
  }

  test('an option of other commands is refused with their names', { timeout: LIMIT }, async () => {
    expect(await said('up', '--registry', 'redis://x')).toEqual({
      code: 1,
      lines: [
        "error: unknown option '--registry'",
        'See llavacode up --help.',
        '--registry is an option of prefill, decode, colocated.',
      ],
    });
  });

  test('a misspelt option is refused with the one that is meant', { timeout: LIMIT }, async () => {
    const { lines } = await said('up', '--prot', '1');
    expect(lines).toEqual(["error: unknown option '--prot'", '(Did you mean --port?)', 'See llavacode up --help.']);
  });

  test('a folder to index that is missing is named before any gateway is asked', { timeout: LIMIT }, async () => {
    const { lines } = await said('index', '--path', '/nope', '--url', 'http://127.0.0.1:1');
    expect(lines[0]).toBe('llavacode: path_unusable: --path /nope: it does not exist (ENOENT)');
  });

  test('a report that could not be written is refused before any work', { timeout: LIMIT }, async () => {
    const { lines } = await said('index', '--path', dir, '--json', '/nope/report.json');
    expect(lines[0]).toBe('llavacode: path_unusable: --json /nope/report.json: it does not exist (ENOENT)');
  });
});

test('a port that another process listens on is refused', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  onTestFinished(() => void server.close());
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  expect(await refusal({ port })).toEqual({
    code: 'address_in_use',
    message: `--host 127.0.0.1 --port ${port}: another process listens there (EADDRINUSE)`,
    remedy: expect.stringMatching(/Choose another port/),
  });
});

test('a host that is not an address of this machine is refused', async () => {
  // 192.0.2.0/24 is kept for documentation (RFC 5737).
  expect(await refusal({ host: '192.0.2.1' })).toEqual({
    code: 'address_unusable',
    message: '--host 192.0.2.1 --port 0: this machine does not have that address (EADDRNOTAVAIL)',
    remedy: expect.stringMatching(/Correct the address/),
  });
});

test('a Redis that does not answer is named without its password', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await new Promise((closed) => server.close(closed)); // nothing listens there now
  expect(await refusal({ store: `redis://user:secret@127.0.0.1:${port}` })).toEqual({
    code: 'store_unavailable',
    message: `redis://127.0.0.1:${port}: connect ECONNREFUSED 127.0.0.1:${port}`,
    remedy: expect.stringMatching(/Start the store, or correct --store/),
  });
});

test('a refusal leaves no data folder behind', async () => {
  await refusal({ index: [join(dir, 'missing')] });
  await expect(readFile(join(dir, 'data', 'up.pid'))).rejects.toThrow('ENOENT');
});

describe('a data folder', () => {
  const pidFile = () => join(dir, 'data', 'up.pid');

  /** A real `llavacode up` on our data folder. */
  function up(): ChildProcess {
    const words = [CLI, 'up', '--port', '0', '--data', join(dir, 'data')];
    const child = spawn(process.execPath, words, { stdio: ['ignore', 'ignore', 'pipe'] });
    onTestFinished(async () => {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill('SIGKILL');
        await once(child, 'exit');
      }
    });
    return child;
  }
  const holds = (child: ChildProcess) =>
    vi.waitUntil(async () => (await readFile(pidFile(), 'utf8').catch(() => '')) === String(child.pid), {
      timeout: LIMIT,
      interval: 20,
    });

  test('that a system works in is refused to a second one, with the process id of the first', {
    timeout: LIMIT,
  }, async () => {
    const first = up();
    await holds(first);
    const second = up();
    let printed = '';
    second.stderr?.on('data', (bytes) => {
      printed += bytes;
    });
    const [code] = await once(second, 'close');
    expect(code).toBe(78);
    expect(printed).toContain(
      `--data ${join(dir, 'data')}: another llavacode up (process ${first.pid}) works there; stop it, or name another folder`,
    );
    // The second one did not take the file of the first with it.
    expect(await readFile(pidFile(), 'utf8')).toBe(String(first.pid));
  });

  test('of a system that was killed is taken over by the next', { timeout: LIMIT }, async () => {
    const killed = up();
    await holds(killed);
    killed.kill('SIGKILL');
    await once(killed, 'exit');
    expect(await readFile(pidFile(), 'utf8')).toBe(String(killed.pid));
    const release = await checkPlaces(places());
    expect(await readFile(pidFile(), 'utf8')).toBe(String(process.pid));
    await release();
    await expect(readFile(pidFile())).rejects.toThrow('ENOENT');
  });

  test.runIf(process.platform === 'linux')(
    'whose process id belongs to another program by now is taken over',
    async () => {
      await mkdir(join(dir, 'data'));
      await writeFile(pidFile(), String(process.ppid));
      const release = await checkPlaces(places());
      expect(await readFile(pidFile(), 'utf8')).toBe(String(process.pid));
      await release();
    },
  );
});

describe('repositories that are indexed at start', () => {
  test('two folders of the same name are refused, because one would replace the other', async () => {
    const dirs = [join(dir, 'a', 'my app'), join(dir, 'b', 'my-app')];
    for (const each of dirs) await mkdir(each, { recursive: true });
    expect(await refusal({ index: dirs })).toMatchObject({
      code: 'config_invalid',
      message: `--index ${dirs[1]}: another repository is called my-app too; index one by llavacode index --name`,
    });
  });

  test.each([
    ['/srv/shop', 'shop'],
    ['/srv/my repo', 'my-repo'],
    ['/srv/.hidden', 'hidden'],
    ['/', 'repository'],
  ])('%s is called %s', (path, name) => {
    expect(repositoryName(path)).toBe(name);
  });
});
