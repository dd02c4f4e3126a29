/**
 * The connection to Redis: one server, a master that sentinels name, or a cluster. It connects in the background, and
 * again with backoff whenever the connection breaks. This file is the only importer of ioredis.
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
  /** The URL of the server, without credentials. */
  readonly address: string;
  readonly #client: Redis | Cluster;
  readonly #firstAttempt: Promise<unknown>;
  #lastError: Error | undefined;

  /**
   * @throws ServingError config_invalid for a text that is not a URL of Redis, or a certificate that cannot be read.
   */
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
   * Runs commands. Only the very first ones wait, for the first attempt to connect.
   * @throws ServingError store_unavailable
   */
  async run<T>(commands: (client: Redis) => Promise<T>): Promise<T> {
    await this.#firstAttempt;
    if (this.#client.status !== 'ready') throw this.#unavailable(this.#lastError);
    try {
      // A cluster takes the same commands as long as all keys of a command lie in one slot.
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
    // The error is not kept as the cause: errors of ioredis carry the command and its arguments, those of AUTH too.
    const why = cause instanceof Error ? reason(cause) : 'not connected';
    return new ServingError('store_unavailable', `${this.address}: ${why}`);
  }
}

/** Why a command failed. The client of a cluster wraps the errors of its nodes. */
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
    // A connection that stays silent while commands wait is dead, whatever TCP says: a new one is made.
    socketTimeout: COMMAND_TIMEOUT_MS,
    // A command on a broken connection fails at once: a completion then goes on without context instead of waiting.
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
      // Certificates are issued for names, and ioredis would by default connect to the resolved addresses.
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
