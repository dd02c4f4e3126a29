/**
 * The addresses of workers, for gateways whose settings do not name them: workers write their addresses into Redis and
 * renew them, gateways read them. There is one sorted set per role, scored by the time at which an entry expires on
 * Redis's own clock, so that the clocks of the machines need not agree.
 *
 * In a system with a secret an entry is sealed with it, together with its role and the time at which it expires:
 * whoever else can write to Redis can neither add a worker nor keep the entry of one that has gone.
 */
import { repeatUntilAborted } from '../async/repeat.ts';
import { parseHostPort } from '../process/host-port.ts';
import type { Logger } from '../process/log.ts';
import type { SystemSecret } from '../process/system-secret.ts';
import { RedisConnection } from './connection.ts';

export type WorkerRole = 'prefill' | 'decode';

/** An entry that is not renewed, because its worker was killed, is gone after this time. */
const TTL_MS = 10_000;
const RENEW_EVERY_MS = TTL_MS / 4;

const NOW = `local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)`;
/** A script with a key is run by the server that has the key: another one may have another clock. */
const TIME = `${NOW}
return now`;
/** Arguments: the entry, when it expires, its time to live, and the worker's entry before. */
const PUT = `${NOW}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREM', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end`;
const LIST = `${NOW}
return {now, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')}`;

const keyOf = (role: WorkerRole) => `llavacode:workers:${role}`;

export class WorkerRegistry {
  readonly #redis: RedisConnection;
  readonly #secret: SystemSecret | undefined;
  readonly #log: Pick<Logger, 'warn'>;
  /** The entries that this process has put, by role and address. */
  readonly #own = new Map<string, string>();
  #toldOfStranger = false;

  /**
   * @param secret seals entries; undefined in a system without one.
   * @throws ServingError config_invalid
   */
  constructor(url: string, secret: SystemSecret | undefined, log: Pick<Logger, 'warn'>) {
    this.#redis = new RedisConnection(url);
    this.#secret = secret;
    this.#log = log;
  }

  /** @throws ServingError store_unavailable */
  async put(role: WorkerRole, address: string, ttlMs = TTL_MS): Promise<void> {
    const nowMs = Number(await this.#redis.run((client) => client.eval(TIME, 1, keyOf(role))));
    const expiresMs = nowMs + ttlMs;
    const entry = this.#entry(role, address, expiresMs);
    const before = this.#own.get(`${role} ${address}`) ?? '';
    await this.#redis.run((client) => client.eval(PUT, 1, keyOf(role), entry, expiresMs, ttlMs, before));
    this.#own.set(`${role} ${address}`, entry);
  }

  /** @throws ServingError store_unavailable */
  async remove(role: WorkerRole, address: string): Promise<void> {
    const entry = this.#own.get(`${role} ${address}`) ?? address;
    await this.#redis.run((client) => client.zrem(keyOf(role), entry));
  }

  /**
   * The addresses (host:port) of all workers of a role, sorted. Entries that no worker of this system has made are left
   * out; the first is logged.
   * @throws ServingError store_unavailable
   */
  async list(role: WorkerRole): Promise<string[]> {
    const found = await this.#redis.run((client) => client.eval(LIST, 1, keyOf(role)));
    const [nowMs, entries] = found as [number, string[]];
    const addresses = entries.flatMap((entry) => this.#addressIn(entry, role, nowMs) ?? []);
    return [...new Set(addresses)].sort();
  }

  /** `address`, and in a system with a secret `address expiry seal`. */
  #entry(role: WorkerRole, address: string, expiresMs: number): string {
    const seal = this.#secret?.seal('registry entry', role, address, expiresMs);
    return seal === undefined ? address : `${address} ${expiresMs} ${seal.toString('base64url')}`;
  }

  #addressIn(entry: string, role: WorkerRole, nowMs: number): string | undefined {
    const [address = '', expires = '', seal = ''] = entry.split(' ');
    const expiresMs = Number(expires);
    const ours =
      this.#secret?.isSealed(Buffer.from(seal, 'base64url'), 'registry entry', role, address, expiresMs) ?? true;
    if (ours && parseHostPort(address) !== undefined) {
      // Redis lists what has not expired by its score, which a stranger can set; the seal holds the worker's own word.
      return this.#secret === undefined || expiresMs > nowMs ? address : undefined;
    }
    if (!this.#toldOfStranger) {
      this.#log.warn(
        { role, entry: entry.slice(0, 100) },
        'the registry has an entry that no worker of this system has made; such entries are ignored: ' +
          'start all services with the same --rpc-secret-file, or see who else writes there',
      );
    }
    this.#toldOfStranger = true;
    return undefined;
  }

  close(): void {
    this.#redis.close();
  }
}

/**
 * Keeps a worker's address in the registry. A worker works without it too: while Redis is away, writing the address is
 * tried again and again.
 * @param url of Redis.
 * @param secret see {@link WorkerRegistry}.
 * @returns a function that takes the address out, which must happen before the worker stops listening.
 * @throws ServingError config_invalid
 */
export function stayRegistered(
  url: string,
  roles: readonly WorkerRole[],
  address: string,
  log: Pick<Logger, 'warn'>,
  secret?: SystemSecret,
): () => Promise<void> {
  const registry = new WorkerRegistry(url, secret, log);
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
