/**
 * Starts a redis-server on a free port, which drills and tests can kill and start again. The binary is the one on PATH,
 * or the one that the tests have unpacked into `.cache/redis`; nothing is downloaded here.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

export interface RedisServer {
  /** redis://127.0.0.1:PORT */
  readonly url: string;
  readonly port: number;
  /** Ends it at once, as a crash does: data that was only in memory is lost. */
  kill(): Promise<void>;
  /** Starts it again on the same port. It is empty, unless its arguments make it keep a log. */
  restart(): Promise<void>;
  /** Stops it with SIGSTOP: the kernel still accepts connections for it, but it answers nothing. */
  pause(): void;
  resume(): void;
  /** Ends it and removes its folder. */
  stop(): Promise<void>;
}

export interface RedisBinary {
  readonly path: string;
  readonly env: NodeJS.ProcessEnv;
}

const run = promisify(execFile);
/** Folder that the tests unpack Debian's packages into. */
export const UNPACKED = join(PACKAGE_ROOT, '.cache', 'redis');
const START_ATTEMPTS = 5;
const STEP_TIMEOUT_MS = 120_000;
/** The line of log by which a server says that it serves, or a sentinel that it watches. */
const READY = /Ready to accept connections|\+monitor master/;

/** @returns undefined if this machine has none. */
export async function findRedis(): Promise<RedisBinary | undefined> {
  for (const binary of [{ path: 'redis-server', env: process.env }, await unpacked(UNPACKED)]) {
    if (await works(binary)) return binary;
  }
  return undefined;
}

/** Arguments in addition to ours, such as `--requirepass`; the function form can put a free port into them. */
export type RedisArguments = readonly string[] | ((port: number, dir: string) => Promise<readonly string[]>);

/** @param extra further arguments of redis-server. */
export async function launchServer(binary: RedisBinary, extra: RedisArguments = []): Promise<RedisServer> {
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

/** Another process may take the port before redis-server binds it: then the next one is tried. */
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

async function launchRedis(
  binary: RedisBinary,
  dir: string,
  port: number,
  extra: readonly string[],
): Promise<ChildProcess> {
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

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

async function works({ path, env }: RedisBinary): Promise<boolean> {
  return run(path, ['--version'], { env, timeout: STEP_TIMEOUT_MS }).then(
    () => true,
    () => false,
  );
}

/** The unpacked server, with the libraries that it needs from `usr/lib/ARCH` under `root`. */
export async function unpacked(root: string): Promise<RedisBinary> {
  const libraries = join(root, 'usr', 'lib');
  const folders = existsSync(libraries) ? await readdir(libraries) : [];
  const searched = folders.map((folder) => join(libraries, folder)).join(':');
  return { path: join(root, 'usr', 'bin', 'redis-server'), env: { ...process.env, LD_LIBRARY_PATH: searched } };
}
