/**
 * A real redis-server for tests: the one on PATH, or else Debian's own packages unpacked into `.cache/redis`, which changes
 * nothing of the system and needs no root. Tests that want Redis fail without it; none is skipped.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, rename, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { PACKAGE_ROOT } from '../services/lib/process/config.ts';

export interface RedisServer {
  /** redis://127.0.0.1:PORT */
  readonly url: string;
  readonly port: number;
  /** Ends it at once, as a crash does; its data is lost. */
  kill(): Promise<void>;
  /** Starts it again, empty, on the same port. */
  restart(): Promise<void>;
  /** SIGSTOP: it accepts connections and answers nothing. */
  pause(): void;
  resume(): void;
  /** Ends it and removes its folder. */
  stop(): Promise<void>;
}

interface Binary {
  readonly path: string;
  readonly env: NodeJS.ProcessEnv;
}

const run = promisify(execFile);
const CACHE = join(PACKAGE_ROOT, '.cache');
const UNPACKED = join(CACHE, 'redis');
const START_ATTEMPTS = 5;
const STEP_TIMEOUT_MS = 120_000;
/** What a server says when it serves, and a sentinel when it watches. */
const READY = /Ready to accept connections|\+monitor master/;

/** Arguments beyond our own, such as `--requirepass`; those that name ports may want one that is free. */
export type RedisArguments = readonly string[] | ((port: number, dir: string) => Promise<readonly string[]>);

/**
 * @param extra further arguments of redis-server.
 * @throws Error that says what to install, where no redis-server can be had.
 */
export async function startRedis(extra: RedisArguments = []): Promise<RedisServer> {
  const binary = await findRedis();
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-redis-'));
  const launch = async (port: number) =>
    launchRedis(binary, dir, port, typeof extra === 'function' ? await extra(port, dir) : extra);
  let { child, port } = await launchOnFreePort(launch);
  const onExit = () => child.kill('SIGKILL');
  process.once('exit', onExit);
  const kill = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  };
  return {
    url: `redis://127.0.0.1:${port}`,
    port,
    kill,
    async restart() {
      await kill();
      child = await launch(port);
    },
    pause: () => void child.kill('SIGSTOP'),
    resume: () => void child.kill('SIGCONT'),
    async stop() {
      await kill();
      process.off('exit', onExit);
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** Another process may take the port between our look and redis-server's bind: then try the next one. */
async function launchOnFreePort(launch: (port: number) => Promise<ChildProcess>) {
  let failure: unknown;
  for (let attempt = 0; attempt < START_ATTEMPTS; attempt++) {
    const port = await freePort();
    try {
      return { child: await launch(port), port };
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}

async function launchRedis(binary: Binary, dir: string, port: number, extra: readonly string[]): Promise<ChildProcess> {
  const own = ['--port', `${port}`, '--bind', '127.0.0.1', '--dir', dir, '--save', '', '--appendonly', 'no'];
  const args = extra.includes('--sentinel') ? extra : [...own, ...extra];
  const child = spawn(binary.path, args, { env: binary.env, stdio: ['ignore', 'pipe', 'inherit'] });
  const log: string[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    if (READY.test(line)) {
      child.stdout.resume();
      return child;
    }
    log.push(line);
  }
  throw new Error(`redis-server did not start:\n${log.join('\n')}`);
}

/** Runs redis-cli, which comes with the server. @returns what it printed. */
export async function redisCli(port: number, ...args: readonly string[]): Promise<string> {
  const { path, env } = await findRedis();
  const cli = path.replace(/redis-server$/, 'redis-cli');
  const { stdout } = await run(cli, ['-h', '127.0.0.1', '-p', `${port}`, ...args], { env, timeout: STEP_TIMEOUT_MS });
  return stdout.trim();
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

async function findRedis(): Promise<Binary> {
  const onPath: Binary = { path: 'redis-server', env: process.env };
  if (await works(onPath)) return onPath;
  if (!(await works(await unpacked(UNPACKED)))) {
    try {
      await provision();
    } catch (error) {
      throw new Error(
        'These tests need a real redis-server: none is on PATH, and unpacking the Debian packages failed. ' +
          'Install it (apt-get install redis-server; brew install redis; or your system’s package) and run again.',
        { cause: error },
      );
    }
  }
  return unpacked(UNPACKED);
}

async function works({ path, env }: Binary): Promise<boolean> {
  return run(path, ['--version'], { env, timeout: STEP_TIMEOUT_MS }).then(
    () => true,
    () => false,
  );
}

/** The unpacked server, with the unpacked libraries it needs: /usr/lib/ARCH under `root`. */
async function unpacked(root: string): Promise<Binary> {
  const libraries = join(root, 'usr', 'lib');
  const folders = existsSync(libraries) ? await readdir(libraries) : [];
  const searched = folders.map((folder) => join(libraries, folder)).join(':');
  return { path: join(root, 'usr', 'bin', 'redis-server'), env: { ...process.env, LD_LIBRARY_PATH: searched } };
}

/** Downloads what this system lacks for redis-server and unpacks it; several processes may do so at once. */
async function provision(): Promise<void> {
  await mkdir(CACHE, { recursive: true });
  const work = await mkdtemp(join(CACHE, 'redis-'));
  try {
    await download(work).catch(async () => {
      // No package lists, or stale ones: fetch them into a folder of ours.
      const lists = await privateLists(work);
      await run('apt-get', [...lists, 'update'], { timeout: STEP_TIMEOUT_MS });
      await download(work, lists);
    });
    const root = join(work, 'root');
    for (const file of (await readdir(work)).filter((name) => name.endsWith('.deb'))) {
      await run('dpkg-deb', ['-x', join(work, file), root], { timeout: STEP_TIMEOUT_MS });
    }
    const binary = await unpacked(root);
    await run(binary.path, ['--version'], { env: binary.env, timeout: STEP_TIMEOUT_MS });
    await rename(root, UNPACKED).catch(async (error) => {
      if (await works(await unpacked(UNPACKED))) return; // another process was first
      await rm(UNPACKED, { recursive: true, force: true });
      await rename(root, UNPACKED).catch(() => Promise.reject(error));
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** A simulated installation names redis-server and those of its libraries that are missing here. */
async function download(work: string, options: readonly string[] = []): Promise<void> {
  const simulate = ['install', '--simulate', '--no-install-recommends', 'redis-server'];
  const { stdout } = await run('apt-get', [...options, ...simulate], { timeout: STEP_TIMEOUT_MS });
  const packages = [...stdout.matchAll(/^Inst (\S+)/gm)].map((match) => match[1] as string);
  await run('apt-get', [...options, 'download', ...packages], { cwd: work, timeout: STEP_TIMEOUT_MS });
}

async function privateLists(work: string): Promise<string[]> {
  const lists = join(work, 'lists');
  const cache = join(work, 'cache');
  await mkdir(join(lists, 'partial'), { recursive: true });
  await mkdir(join(cache, 'archives', 'partial'), { recursive: true });
  return ['-o', `Dir::State::lists=${lists}`, '-o', `Dir::Cache=${cache}`, '-o', 'APT::Sandbox::User='];
}
