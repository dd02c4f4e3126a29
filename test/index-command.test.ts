/** `llavacode index` as a real process: through a running system, and into a store of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import type { IndexReport } from '../services/indexer/index-run.ts';
import { PACKAGE_ROOT } from '../services/lib/process/package-root.ts';
import { openStore } from '../services/lib/rag/store/open-store.ts';
import { type RunningSystem, startSystem } from '../services/supervisor.ts';
import { python } from './support/fake-indexer.ts';
import { smallestBundle } from './support/smallest-bundle.ts';

/** For processes that start on a machine that others use too. */
const SOON = { timeout: 120_000, interval: 50 };
vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });
const CLI = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');

let home: string;
let model: string;
let dir: string;
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'llavacode-index-command-'));
  model = await smallestBundle(home);
});
afterAll(() => rm(home, { recursive: true, force: true }));
beforeEach(async () => {
  dir = join(await mkdtemp(join(home, 'tree-')), 'tree');
  await mkdir(dir);
});

const write = async (path: string, text = python(path.replace(/\W/g, '_'), 12)) => {
  await mkdir(dirname(join(dir, path)), { recursive: true });
  await writeFile(join(dir, path), text);
};

interface Run {
  readonly process: ChildProcess;
  /** What it said on stderr so far. */
  said(): string;
  readonly exit: Promise<number | null>;
}

function startIndex(words: readonly string[], env: NodeJS.ProcessEnv = {}): Run {
  const args = [CLI, 'index', '--name', 'shop', '--path', dir, ...words];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } });
  onTestFinished(() => void child.kill('SIGKILL'));
  let said = '';
  child.stderr.on('data', (text) => {
    said += text;
  });
  return { process: child, said: () => said, exit: once(child, 'exit').then(([code]) => code) };
}

/** Runs to its end, which must be a success. */
async function index(words: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<IndexReport> {
  const json = join(dirname(dir), 'report.json');
  const run = startIndex([...words, '--json', json], env);
  expect(await run.exit, run.said()).toBe(0);
  return JSON.parse(await readFile(json, 'utf8'));
}

/** Runs to its end, which must be a failure; returns what it said. */
async function fails(words: readonly string[]): Promise<string> {
  const run = startIndex(words);
  expect([1, 78]).toContain(await run.exit); // 78: a setting must be corrected first
  return run.said();
}

const local = (name = 'store') => ['--store', `lmdb:${join(dirname(dir), name)}`, '--model', model, '--threads', '1'];

describe('through a running system', () => {
  const KEY = 'a-key-of-this-test';
  let system: RunningSystem;
  let remote: string[];
  beforeAll(async () => {
    const { createHash } = await import('node:crypto');
    const keys = join(home, 'keys.json');
    const key_sha256 = createHash('sha256').update(KEY).digest('hex');
    await writeFile(keys, JSON.stringify([{ key_sha256, tenant: 'acme', repos: ['*'] }]));
    const store = `lmdb:${join(home, 'served')}`;
    system = await startSystem({
      mode: 'colocated',
      prefill: 1,
      decode: 0,
      logs: join(home, 'logs'),
      gateway: { model, store, threads: 1, port: 0, connectTimeoutMs: 60_000, apiKeysFile: keys },
      workers: { model, threads: 1, slots: 2, capacity: 256 },
      indexer: { model, store, threads: 1 },
    });
    remote = ['--url', system.url, '--api-key', KEY];
  });
  afterAll(() => system?.close());

  const head = async () => {
    const headers = { authorization: `Bearer ${KEY}` };
    return (await (await fetch(`${system.url}/v1/repos/shop`, { headers })).json()) as { version: string };
  };
  /** Waits until the system serves what a run of its own process makes of the tree. */
  const follows = async () => {
    const { version } = await index(local(`own-${Math.random()}`));
    await expect.poll(async () => (await head()).version, SOON).toBe(version);
  };

  test('the same version comes of the same tree as in this process, twice changes nothing, and rules hold', async () => {
    await write('.gitignore', 'private.py\n');
    for (const path of ['a.py', 'src/b.py', 'private.py', 'node_modules/m/i.js', '.env']) await write(path);
    await write('nb.ipynb', JSON.stringify({ cells: [{ cell_type: 'code', source: ['x = 1'], outputs: ['BASE64'] }] }));
    await write('venv/pyvenv.cfg', '');
    await write('venv/lib/dependency.py');
    const first = await index(remote);
    expect(first).toMatchObject({ changed: true, files: 3, skipped: { notebook: 1, dependency: 1 } });
    expect(await index(local())).toMatchObject({ version: first.version, skipped: first.skipped });
    expect(await index(remote)).toMatchObject({ version: first.version, changed: false, embedded: 0 });
    const file = join(dirname(dir), 'key');
    await writeFile(file, `${KEY}\n`);
    expect(await index(['--url', system.url, '--api-key-file', file])).toMatchObject({ changed: false });
    expect(await index(['--url', system.url], { LLAVACODE_API_KEY: KEY })).toMatchObject({ changed: false });
  });

  test('a watch sends what changes, and everything after another version came between', async () => {
    for (const path of ['a.py', 'src/b.py', 'src/c.py']) await write(path);
    const run = startIndex([...remote, '--watch']);
    await vi.waitUntil(() => run.said().includes('version'), SOON);
    await follows();
    await write('a.py', 'changed = 1');
    await follows();
    await rm(join(dir, 'src'), { recursive: true });
    await follows();
    const other = { files: [{ path: 'foreign.py', content: 'foreign = 1' }] };
    const headers = { authorization: `Bearer ${KEY}`, 'content-type': 'application/json' };
    await fetch(`${system.url}/v1/repos/shop`, { method: 'PUT', headers, body: JSON.stringify(other) });
    await write('d.py');
    await follows();
    run.process.kill('SIGINT');
    expect(await run.exit).toBe(0);
  });

  test('an empty folder does not replace an index with files', async () => {
    await write('a.py');
    const { version } = await index(remote);
    await rm(join(dir, 'a.py'));
    expect(await fails(remote)).toContain('holds no files to index');
    expect((await head()).version).toBe(version);
    expect(await index([...remote, '--allow-empty'])).toMatchObject({ changed: true, chunks: 0 });
  });

  test('a key that is missing, and a root that is missing, are said as such', async () => {
    expect(await fails(['--url', system.url])).toMatch(/invalid_api_key: .*--api-key-file/);
    await rm(dir, { recursive: true });
    expect(await fails(remote)).toContain(`--path ${dir}: it does not exist`);
  });
});

test('where nothing listens, or something else, that is said with what to do', async () => {
  const server = createServer((_, answer) => answer.writeHead(404).end('<html>')).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  expect(await fails(['--url', url])).toMatch(/HTTP 404, but not as a LlavaCode gateway/);
  server.close();
  server.closeAllConnections();
  expect(await fails(['--url', url])).toMatch(/no gateway answers there.*llavacode up.*--store/);
  expect(await fails(['--url', url, '--model', model])).toContain('--model: without --store');
  expect(await fails(['--url', 'nowhere'])).toContain('must be http');
});

test('with a store a checkpoint will do, made into a bundle once', async () => {
  await write('a.py');
  const words = ['--model', join(PACKAGE_ROOT, 'models', 'tiny-coder'), '--data', join(home, 'data'), '--threads', '1'];
  const store = ['--store', `lmdb:${join(dirname(dir), 'checkpoint')}`];
  const { version } = await index([...words, ...store]);
  expect(await index([...words, ...store])).toMatchObject({ version, changed: false });
});

test('a watch whose root is away for a while publishes nothing meanwhile and follows it afterwards', async () => {
  for (const path of ['a.py', 'src/b.py']) await write(path);
  const run = startIndex([...local(), '--watch']);
  await vi.waitUntil(() => run.said().includes('version'), SOON);
  const store = await openStore(`lmdb:${join(dirname(dir), 'store')}`);
  onTestFinished(() => store.close());
  const { version } = (await store.head('shop'))!;
  await rename(dir, `${dir}-away`);
  await vi.waitUntil(() => run.said().includes('the index stays as it is'), SOON);
  expect((await store.head('shop'))?.version).toBe(version);
  await rename(`${dir}-away`, dir);
  await write('src/new.py');
  await expect.poll(async () => (await store.head('shop'))?.files, SOON).toBe(3);
  run.process.kill('SIGTERM');
  expect(await run.exit).toBe(0);
});
