/**
 * A real redis-server for tests: the one on PATH, or else Debian's own packages unpacked into `.cache/redis`, which
 * does not change the system and needs no root. Without a server, tests that need Redis fail; none is skipped.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import {
  findRedis,
  launchServer,
  type RedisArguments,
  type RedisBinary,
  type RedisServer,
  UNPACKED,
  unpacked,
} from '../../bench/system/redis.ts';
import { unpackPackages } from './debian-packages.ts';

export { freePort, type RedisServer } from '../../bench/system/redis.ts';

const run = promisify(execFile);
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
    await unpackPackages(UNPACKED, { always: ['redis-server', 'redis-tools'] });
  } catch (error) {
    throw new Error(
      'These tests need a real redis-server: none is on PATH, and unpacking the Debian packages failed. ' +
        'Install it (apt-get install redis-server; brew install redis; or your system’s package) and run again.',
      { cause: error },
    );
  }
  return unpacked(UNPACKED);
}
