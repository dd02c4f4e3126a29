/**
 * A real redis-server for tests: the one on PATH, or else Debian's own packages unpacked into `.cache/redis`, which
 * does not change the system and needs no root. Without a server, tests that need Redis fail; none is skipped.
 */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import {
  findRedis,
  launchServer,
  type RedisArguments,
  type RedisBinary,
  type RedisServer,
  UNPACKED,
  unpacked,
  works,
} from '../../bench/system/redis.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

export { freePort, type RedisServer } from '../../bench/system/redis.ts';

const run = promisify(execFile);
const CACHE = join(PACKAGE_ROOT, '.cache');
const STEP_TIMEOUT_MS = 120_000;

/**
 * @param extra further arguments of redis-server.
 * @throws Error that says what to install, if there is no redis-server.
 */
export async function startRedis(extra: RedisArguments = []): Promise<RedisServer> {
  return launchServer(await haveRedis(), extra);
}

/** Runs redis-cli, which comes with the server. @returns its output. */
export async function redisCli(port: number, ...args: readonly string[]): Promise<string> {
  const { path, env } = await haveRedis();
  const cli = path.replace(/redis-server$/, 'redis-cli');
  const { stdout } = await run(cli, ['-h', '127.0.0.1', '-p', `${port}`, ...args], { env, timeout: STEP_TIMEOUT_MS });
  return stdout.trim();
}

/** The binary, which is fetched first if there is none. */
async function haveRedis(): Promise<RedisBinary> {
  const found = await findRedis();
  if (found) return found;
  try {
    await provision();
  } catch (error) {
    throw new Error(
      'These tests need a real redis-server: none is on PATH, and unpacking the Debian packages failed. ' +
        'Install it (apt-get install redis-server; brew install redis; or your system’s package) and run again.',
      { cause: error },
    );
  }
  return unpacked(UNPACKED);
}

/** Downloads and unpacks what this system lacks for redis-server. Several processes may do so at once. */
async function provision(): Promise<void> {
  await mkdir(CACHE, { recursive: true });
  const work = await mkdtemp(join(CACHE, 'redis-'));
  try {
    await download(work).catch(async () => {
      // There are no package lists, or stale ones: fetch them into a folder of ours.
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
