/**
 * A whole system, as `llavacode up` starts it, talks to nobody but itself: not through a proxy of its environment, not
 * to the makers of its dependencies, and it leaves no file in the home folder of its user. Of the machine's other users
 * none can read what it keeps.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { type MetricsRole, measuredBy, metrics } from '../../services/lib/process/metrics.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { metricFacts } from '../support/operations.ts';

/** Real processes that load a model take long on a machine that is busy. */
const LIMIT = 300_000;
vi.setConfig({ testTimeout: LIMIT, hookTimeout: 2 * LIMIT });

const SPELLINGS = ['http_proxy', 'https_proxy', 'all_proxy', 'grpc_proxy', 'npm_config_proxy'];
const MARK = 'qzuploadedzq';

let dir: string;
let proxy: Server;
let proxied = 0;
let up: ChildProcess;
let url: string;
/** The system's output. */
let said = '';
let sockets: SocketWatch;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-closed-'));
  await mkdir(join(dir, 'home'));
  await leaveOpen();
  proxy = createServer((socket) => {
    proxied++;
    socket.destroy();
  });
  await once(proxy.listen(0, '127.0.0.1'), 'listening');
  const address = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const proxies = SPELLINGS.flatMap((name) => [name, name.toUpperCase()]).map((name) => [name, address]);
  const words = ['up', '--port', '0', '--data', join(dir, 'data'), '--index', join(PACKAGE_ROOT, 'examples', 'shop')];
  up = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist/services/cli.js'), ...words], {
    // Nothing of the environment of the tests: it turns off telemetry itself.
    env: {
      ...Object.fromEntries(proxies),
      PATH: process.env['PATH'],
      HOME: join(dir, 'home'),
      NODE_USE_ENV_PROXY: '1',
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  sockets = new SocketWatch(up.pid!);
  url = await servedUrl(up);
});
afterAll(async () => {
  await sockets?.stop();
  if (up?.exitCode === null) {
    up.kill('SIGTERM');
    await once(up, 'exit');
  }
  proxy?.close();
  await rm(dir, { recursive: true, force: true });
});

/** What an earlier version left in the data folder, open to everybody. */
const LEFT_OPEN = ['bundles/old/manifest.json', 'store/data.mdb'];

async function leaveOpen(): Promise<void> {
  for (const path of LEFT_OPEN) {
    await mkdir(dirname(join(dir, 'data', path)), { recursive: true });
    await writeFile(join(dir, 'data', path), '');
    await chmod(join(dir, 'data', path), 0o666);
  }
  for (const folder of ['.', 'bundles', 'bundles/old', 'store']) await chmod(join(dir, 'data', folder), 0o777);
}

/** Resolves when the system says where it serves. */
function servedUrl(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    const hear = (text: Buffer) => {
      said += text;
      const served = /Serving at (\S+\d)/.exec(said);
      if (served) resolve(served[1]!);
    };
    child.stdout!.on('data', hear);
    child.stderr!.on('data', hear);
    child.once('exit', (code) => reject(new Error(`ended with ${code} before it served:\n${said}`)));
  });
}

async function ask(method: string, path: string, body: object): Promise<Record<string, unknown>> {
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(`${url}${path}`, { method, headers, body: JSON.stringify(body) });
  const text = await answer.text();
  expect(answer.status, text).toBe(200);
  return JSON.parse(text);
}

/** Collects the sockets of a process and its descendants that lead anywhere but to this machine, while they work. */
class SocketWatch {
  /** Every connection that was seen, as `tcp remote address in hex`. */
  readonly seen = new Set<string>();
  readonly #root: number;
  #stopped = false;
  readonly #watching: Promise<void>;

  constructor(root: number) {
    this.#root = root;
    this.#watching = this.#watch();
  }

  get outside(): string[] {
    return [...this.seen].filter((socket) => !isInside(socket));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#watching;
  }

  async #watch(): Promise<void> {
    while (!this.#stopped) {
      const inodes = new Set<string>();
      for (const pid of await family(this.#root)) for (const inode of await socketsOf(pid)) inodes.add(inode);
      for (const table of ['tcp', 'tcp6', 'udp', 'udp6']) {
        for (const line of (await textOf(`/proc/net/${table}`)).split('\n').slice(1)) {
          const [, , remote, , , , , , , inode] = line.trim().split(/\s+/);
          if (remote !== undefined && inodes.has(inode!)) this.seen.add(`${table} ${remote}`);
        }
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

/** Loopback, or no remote side: a socket that listens. A UDP socket without one, or to a resolver, is a look-up. */
function isInside(socket: string): boolean {
  const [table, remote] = socket.split(' ') as [string, string];
  const [host, port] = remote.split(':') as [string, string];
  // Bytes of each 32-bit word are reversed: 127.0.0.1 is 0100007F.
  const isLoopback =
    /^(0{16}FFFF0000)?.{6}7F$/.test(host) || host === '00000000000000000000000001000000' || host === '0'.repeat(32);
  if (table.startsWith('udp')) return /7F$|01000000$/.test(host) && port !== '0035';
  return isLoopback || /^0+$/.test(host);
}

async function family(root: number): Promise<number[]> {
  const text = await textOf(`/proc/${root}/task/${root}/children`);
  const children = text.split(' ').filter(Boolean).map(Number);
  return [root, ...(await Promise.all(children.map(family))).flat()];
}

async function socketsOf(pid: number): Promise<string[]> {
  const folder = `/proc/${pid}/fd`;
  const names = await readdir(folder).catch(() => []);
  const links = await Promise.all(names.map((name) => readlink(join(folder, name)).catch(() => '')));
  return links.flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []);
}

/** '' for what is gone: processes end while they are watched. */
const textOf = (path: string) => readFile(path, 'utf8').catch(() => '');

test('a system serves, indexes and completes with every proxy variable set, and no connection reaches the proxy', async () => {
  await ask('PUT', '/v1/repos/mine', { files: [{ path: 'a.py', content: `def ${MARK}(x):\n    return x\n` }] });
  const body = { prompt: 'def total(items):\n    ', max_tokens: 8, rag: { repo: 'shop' } };
  const { usage } = await ask('POST', '/v1/completions', body);
  expect(usage).toMatchObject({ prompt_tokens_details: { soft_tokens: expect.any(Number) } });
  expect(proxied).toBe(0);
});

test('the watch of sockets sees those of a descendant, and knows other machines from this one', async () => {
  const server = createServer();
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  const connect = `require('node:net').connect(${port}, '127.0.0.1')`;
  const start = `require('node:child_process').spawnSync(process.execPath, ['-e', ${JSON.stringify(connect)}])`;
  const child = spawn(process.execPath, ['-e', start]);
  const watch = new SocketWatch(child.pid!);
  const [accepted] = await once(server, 'connection');
  const socket = `tcp 0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  await vi.waitUntil(() => watch.seen.has(socket), { timeout: LIMIT });
  accepted.destroy();
  await once(child, 'exit');
  await watch.stop();
  server.close();
  expect(watch.outside).toEqual([]);
  watch.seen.add('tcp 08080808:01BB').add('udp 08080808:0035').add('tcp6 0000000000000000FFFF000001010101:01BB');
  expect(watch.outside).toHaveLength(3);
});

test('a worker alone, in an environment without proxies, opens no socket to the outside and writes no file', async () => {
  const home = join(dir, 'home-of-worker');
  await mkdir(home);
  const bundles = join(dir, 'data', 'bundles');
  const [bundle] = (await readdir(bundles)).filter((name) => name.startsWith('tiny-coder'));
  const words = ['prefill', '--model', join(bundles, bundle!), '--port', '0'];
  const worker = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist/services/cli.js'), ...words], {
    env: { PATH: process.env['PATH'], HOME: home },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const watch = new SocketWatch(worker.pid!);
  let said = '';
  for await (const text of worker.stderr) {
    said += text;
    if (said.includes('"msg":"ready"')) break;
  }
  expect(said).toContain('"msg":"ready"');
  await expect.poll(() => watch.seen.size).toBeGreaterThan(0); // the port on which it listens, at the next look
  worker.kill('SIGTERM');
  await once(worker, 'exit');
  await watch.stop();
  expect(watch.outside).toEqual([]);
  expect(await readdir(home, { recursive: true })).toEqual([]);
});

test('nothing in the data folder of a running system can be used by others, not even what was left open before', async () => {
  const paths = ['.', ...(await readdir(join(dir, 'data'), { recursive: true }))];
  expect(paths).toEqual(expect.arrayContaining([...LEFT_OPEN, 'store/lock.mdb', 'logs/gateway-0.log', 'up.pid']));
  expect(paths.filter((path) => path.includes('/prepacked/')).length).toBeGreaterThan(0);
  const modes = await Promise.all(
    paths.map(async (path) => [path, (await lstat(join(dir, 'data', path))).mode & 0o077] as const),
  );
  expect(modes.filter(([, mode]) => mode !== 0)).toEqual([]);
  expect(said.match(/other users of this machine could use 6 files and folders of \S+data;/g)).toHaveLength(1);
});

test('every process exports the metrics of its role, and no other', async () => {
  const folder = join(dir, 'data', 'logs');
  const services = new Set<string>();
  for (const name of (await readdir(folder)).filter((name) => name.endsWith('.log'))) {
    const lines = (await readFile(join(folder, name), 'utf8')).split('\n').filter((line) => line.startsWith('{'));
    const ready = lines.map((line) => JSON.parse(line)).find(({ msg }) => msg === 'ready');
    const role = ready.service as MetricsRole;
    const scrape = await (await fetch(`http://${ready.metricsAddress}/metrics`)).text();
    const exported = [...scrape.matchAll(/^# TYPE ((?:vllm:|llavacode:|gen_ai_)\S+)/gm)].map((match) => match[1]!);
    const measured = Object.values(metrics).filter((metric) => measuredBy(metric).includes(role));
    expect(exported.toSorted(), role).toEqual(measured.map((metric) => metricFacts(metric).name).toSorted());
    expect(scrape).toMatch(/^llavacode:build_info\{[^}]*version="\d/m);
    services.add(role);
  }
  expect([...services].toSorted()).toEqual(['decode', 'gateway', 'indexer', 'prefill']);
});

test('no process opened a socket to anywhere but this machine', async () => {
  await sockets.stop();
  expect(sockets.seen.size).toBeGreaterThan(0);
  expect(sockets.outside).toEqual([]);
});

test('the home folder is empty afterwards', async () => {
  up.kill('SIGTERM');
  const [code] = await once(up, 'exit');
  expect([0, 130, 143]).toContain(code);
  expect(await readdir(join(dir, 'home'), { recursive: true })).toEqual([]);
});
