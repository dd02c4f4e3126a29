/**
 * The addresses of workers, for gateways whose settings do not name them: workers write their addresses into Redis and
 * renew them, gateways read them. There is one sorted set per role, scored by the time at which an entry expires on
 * Redis's own clock, so that the clocks of the machines need not agree.
 */
import { repeatUntilAborted } from '../async/repeat.ts';
import type { Logger } from '../process/log.ts';
import { RedisConnection } from './connection.ts';

export type WorkerRole = 'prefill' | 'decode';

/** An entry that is not renewed, because its worker was killed, is gone after this time. */
const TTL_MS = 10_000;
const RENEW_EVERY_MS = TTL_MS / 4;

const NOW = `local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)`;
const PUT = `${NOW}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end`;
const LIST = `${NOW}
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')`;

const keyOf = (role: WorkerRole) => `llavacode:workers:${role}`;

export class WorkerRegistry {
  readonly #redis: RedisConnection;

  /** @throws ServingError config_invalid */
  constructor(url: string) {
    this.#redis = new RedisConnection(url);
  }

  /** @throws ServingError store_unavailable */
  async put(role: WorkerRole, address: string, ttlMs = TTL_MS): Promise<void> {
    await this.#redis.run((client) => client.eval(PUT, 1, keyOf(role), address, ttlMs));
  }

  /** @throws ServingError store_unavailable */
  async remove(role: WorkerRole, address: string): Promise<void> {
    await this.#redis.run((client) => client.zrem(keyOf(role), address));
  }

  /**
   * The addresses (host:port) of all workers of a role, sorted.
   * @throws ServingError store_unavailable
   */
  async list(role: WorkerRole): Promise<string[]> {
    const found = await this.#redis.run((client) => client.eval(LIST, 1, keyOf(role)));
    return (found as string[]).sort();
  }

  close(): void {
    this.#redis.close();
  }
}

/**
 * Keeps a worker's address in the registry. A worker works without it too: while Redis is away, writing the address is
 * tried again and again.
 * @param url of Redis; '' for no registry.
 * @returns a function that takes the address out, which must happen before the worker stops listening.
 * @throws ServingError config_invalid
 */
export function stayRegistered(
  url: string,
  roles: readonly WorkerRole[],
  address: string,
  log: Pick<Logger, 'warn'>,
): () => Promise<void> {
  if (url === '') return async () => {};
  const registry = new WorkerRegistry(url);
  const leaving = new AbortController();
  const tell = async (what: 'put' | 'remove') => {
    try {
      await Promise.all(roles.map((role) => registry[what](role, address)));
    } catch (err) {
      log.warn({ err, address }, `the registry could not be reached: ${what} failed`);
    }
  };
  const renewing = repeatUntilAborted(leaving.signal, async () => {
    await tell('put');
    return RENEW_EVERY_MS;
  });
  return async () => {
    leaving.abort();
    await renewing;
    await tell('remove');
    registry.close();
  };
}
