/**
 * The connection to Redis, and the only importer of ioredis: one server, a master that sentinels name, or a cluster.
 * Connects in the background, and again with backoff whenever the connection breaks.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { Cluster, Redis, type RedisOptions } from 'ioredis';
import { ServingError } from '../process/errors.ts';
import { parseRedisUrl, type RedisAddress } from './url.ts';

const CONNECT_TIMEOUT_MS = 2_000;
const COMMAND_TIMEOUT_MS = 5_000;
const RETRY_MAX_MS = 500;
const backoff = (attempt: number) => Math.min(50 * 2 ** Math.min(attempt, 10), RETRY_MAX_MS);

export class RedisConnection {
  /** Where it is, without credentials. */
  readonly address: string;
  readonly #client: Redis | Cluster;
  readonly #firstAttempt: Promise<unknown>;
  #lastError: Error | undefined;

  /** @throws ServingError config_invalid for what is no URL, or names a certificate that cannot be read. */
  constructor(url: string) {
    const address = parseRedisUrl(url);
    this.address = address.shown;
    this.#client = makeClient(address);
    this.#client.on('error', (error) => {
      this.#lastError = error;
    });
    const connected = this.#client.connect().catch((error: Error) => {
      this.#lastError ??= error;
    });
    this.#firstAttempt = Promise.race([connected, delay(CONNECT_TIMEOUT_MS, undefined, { ref: false })]);
  }

  /**
   * Runs commands; only the first ones wait, for the first attempt to connect.
   * @throws ServingError store_unavailable
   */
  async run<T>(commands: (client: Redis) => Promise<T>): Promise<T> {
    await this.#firstAttempt;
    if (this.#client.status !== 'ready') throw this.#unavailable(this.#lastError);
    try {
      // A cluster takes the same commands, as long as the keys of one lie in one slot.
      return await commands(this.#client as Redis);
    } catch (error) {
      if (error instanceof ServingError) throw error;
      throw this.#unavailable(error);
    }
  }

  close(): void {
    this.#client.disconnect();
  }

  #unavailable(cause: unknown): ServingError {
    // Not kept as the cause: errors of ioredis carry the command with its arguments, of AUTH too.
    const why = cause instanceof Error ? reason(cause) : 'not connected';
    return new ServingError('store_unavailable', `${this.address}: ${why}`);
  }
}

/** A cluster's client wraps what its nodes said. */
function reason(error: Error & { lastNodeError?: Error }): string {
  return error.lastNodeError ? `${error.message} (${error.lastNodeError.message})` : error.message;
}

function makeClient(address: RedisAddress): Redis | Cluster {
  const { kind, nodes, username, password, db, master } = address;
  const { caFile, certFile, keyFile } = address;
  const tls = address.tls
    ? { ca: readPem('ca', caFile), cert: readPem('cert', certFile), key: readPem('key', keyFile) }
    : undefined;
  const options: RedisOptions = {
    username,
    password,
    db,
    tls,
    lazyConnect: true,
    connectTimeout: CONNECT_TIMEOUT_MS,
    commandTimeout: COMMAND_TIMEOUT_MS,
    // A connection that stays silent under commands is dead, whatever TCP thinks: a new one is made.
    socketTimeout: COMMAND_TIMEOUT_MS,
    // A command that meets a broken connection fails at once: a completion goes on without context instead of waiting.
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    autoResendUnfulfilledCommands: false,
    retryStrategy: backoff,
    connectionName: 'llavacode',
  };
  if (kind === 'cluster') {
    return new Cluster([...nodes], {
      redisOptions: options,
      lazyConnect: true,
      enableOfflineQueue: false,
      clusterRetryStrategy: backoff,
      slotsRefreshTimeout: CONNECT_TIMEOUT_MS,
      // Certificates are for names; by default ioredis resolves them first.
      ...(tls ? { dnsLookup: (host: string, done: (error: null, address: string) => void) => done(null, host) } : {}),
    });
  }
  if (kind === 'sentinel') {
    const { sentinelUsername, sentinelPassword } = address;
    return new Redis({
      ...options,
      sentinels: [...nodes],
      name: master,
      sentinelUsername,
      sentinelPassword,
      sentinelTLS: tls,
      enableTLSForSentinelMode: address.tls,
      sentinelRetryStrategy: backoff,
      sentinelCommandTimeout: CONNECT_TIMEOUT_MS,
    });
  }
  return new Redis({ ...options, ...nodes[0] });
}

function readPem(parameter: string, file: string | undefined): Buffer | undefined {
  if (file === undefined) return undefined;
  try {
    return readFileSync(file);
  } catch (cause) {
    throw new ServingError('config_invalid', `${parameter}=${file} of the store's URL: ${(cause as Error).message}`, {
      cause,
    });
  }
}
