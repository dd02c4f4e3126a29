/**
 * The connection to Redis: one server, a master that sentinels name, or a cluster. It connects in the background, and
 * again with backoff whenever the connection breaks, or leads to the wrong server (see wrong-server.ts): a planned
 * failover leaves the old master reachable, as a replica. Every attempt resolves the name, or asks the sentinels, anew.
 * This file is the only importer of ioredis.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { Cluster, Redis, type RedisOptions, ReplyError } from 'ioredis';
import { Deferred } from '../async/deferred.ts';
import { ServingError } from '../process/errors.ts';
import { reasonOf } from '../process/os-errors.ts';
import { parseRedisUrl, type RedisAddress } from './url.ts';
import {
  isFromClusterNode,
  isFromOtherServer,
  mastersOf,
  parseInfo,
  remedyFor,
  useClusterUrl,
  useSentinelUrl,
} from './wrong-server.ts';

const CONNECT_TIMEOUT_MS = 2_000;
const COMMAND_TIMEOUT_MS = 5_000;
/**
 * How long a command of {@link Repeat} 'away' is tried again, in ms: shorter than an index run's lock lives without
 * being renewed.
 */
const AWAY_MS = 10_000;
const RETRY_MAX_MS = 500;
/** A connection that the server does not close although we have is cut after this time, in ms. */
const CLOSE_TIMEOUT_MS = 500;
/** Pause between two looks at the server's role, in ms. A look is one INFO: see #look. */
const LOOK_EVERY_MS = 5_000;
const backoff = (attempt: number) => Math.min(50 * 2 ** Math.min(attempt, 10), RETRY_MAX_MS);

/**
 * When a command waits for a connection, and when it is sent again: until 5 s ({@link AWAY_MS} for 'away') have passed.
 *
 *   never     It does not wait, and is sent once.
 *   refused   It waits. It is sent again if the wrong server answered, which has then done nothing.
 *   lost      It waits only if the connection led to the wrong server a moment ago. It is sent again also if it was on
 *             that connection: whether it was carried out is not known then, so this is for reads, and for writes that
 *             may be done twice. Where the server is away it fails at once, so that a completion goes on without it.
 *   away      It waits, and is sent again whenever the connection breaks: for work that would be lost otherwise.
 */
export type Repeat = 'never' | 'refused' | 'lost' | 'away';

export class RedisConnection {
  /** The URL of the server, without credentials. */
  readonly address: string;
  readonly #address: RedisAddress;
  readonly #client: Redis | Cluster;
  /** The connection of subscriptions, which a cluster's client makes by itself. */
  #subscriber: Redis | Cluster | undefined;
  readonly #firstAttempt: Promise<unknown>;
  #lastError: Error | undefined;
  /** Resolves when a connection has been made, or none will be made any more; then a new one takes its place. */
  #nextReady = new Deferred<void>();
  /** The connection has been given up and has not closed yet. */
  #leaving = false;
  /** Connections in a row that led to the wrong server, and when the last one of them was given up. */
  #misled = 0;
  #misledAtMs = -Infinity;
  /** Whether this connection has led to a master. */
  #hasSeenMaster = false;
  /** The reason why this kind of server cannot be used with this URL. */
  #wrongKind: string | undefined;
  readonly #looking: NodeJS.Timeout;

  /**
   * @throws ServingError config_invalid for a text that is not a URL of Redis, or a certificate that cannot be read.
   */
  constructor(url: string) {
    this.#address = parseRedisUrl(url);
    this.address = this.#address.shown;
    this.#client = makeClient(this.#address, {
      reconnectOnError: (error) => this.#isWrong(error) && this.#leave(),
      retryStrategy: (attempt) => backoff(Math.max(attempt, this.#misled)),
    });
    this.#client.on('error', (error) => {
      this.#lastError = error;
    });
    this.#client.on('close', () => {
      this.#leaving = false;
      this.#hasSeenMaster = false;
    });
    let looked: Promise<void> | undefined;
    this.#client.on('ready', () => {
      looked = this.#look();
      this.#renewReady();
    });
    this.#client.on('end', () => this.#renewReady());
    const connected = this.#client.connect().then(
      () => looked,
      (error: Error) => {
        this.#lastError ??= error;
      },
    );
    this.#firstAttempt = Promise.race([connected, delay(CONNECT_TIMEOUT_MS, undefined, { ref: false })]);
    this.#looking = setInterval(() => void this.#look(), LOOK_EVERY_MS).unref();
  }

  /**
   * Runs a command. The very first ones wait for the first attempt to connect, whatever `repeat` is.
   * @param command is called once for each time that it is sent.
   * @throws ServingError store_unavailable
   */
  async run<T>(command: (client: Redis) => Promise<T>, repeat: Repeat = 'lost'): Promise<T> {
    await this.#firstAttempt;
    const untilMs = performance.now() + (repeat === 'away' ? AWAY_MS : COMMAND_TIMEOUT_MS);
    /** The last answer of a wrong server. It says more than how the last attempt to leave that server failed. */
    let wrong: unknown;
    for (let attempt = 1; ; attempt++) {
      if (this.#wrongKind !== undefined) throw this.#unavailable(new Error(this.#wrongKind));
      let failure: unknown;
      if (this.#usable) {
        try {
          // A cluster takes the same commands as long as all keys of a command lie in one slot.
          return await command(this.#client as Redis);
        } catch (error) {
          if (error instanceof ServingError) throw error;
          failure = error;
          if (isFromOtherServer(error)) wrong = error;
          if (!this.#mayRepeat(error, repeat)) throw this.#unavailable(wrong ?? failure);
        }
      } else {
        failure = this.#lastError;
        const waits = repeat === 'away' || repeat === 'refused' || (repeat === 'lost' && this.#isMoving);
        if (!waits) throw this.#unavailable(wrong ?? failure);
      }
      if (!(await this.#readyAgain(attempt, untilMs))) throw this.#unavailable(wrong ?? failure);
    }
  }

  /**
   * Listens to a channel from now on, by a connection of its own, which is made again whenever it breaks. Messages that
   * come while it is broken are lost. To be called once.
   * @param onSubscribed is called whenever Redis has begun to send us what comes; of a cluster the first time only.
   * @returns makes the connection anew, for a caller who hears nothing although there must have been something.
   */
  subscribe(channel: string, listener: (message: string) => void, onSubscribed: () => void): () => void {
    const client = this.#client;
    const isCluster = client instanceof Cluster;
    const subscriber = isCluster
      ? client
      : makeClient(this.#address, { retryStrategy: backoff, autoResubscribe: false });
    this.#subscriber = subscriber;
    subscriber.on('message', (from: string, message: string) => from === channel && listener(message));
    const subscribe = async () => {
      try {
        await subscriber.subscribe(channel);
        onSubscribed();
      } catch {
        // A single connection is ready again later. The client of a cluster goes on being ready, and subscribes by
        // itself whenever its connection breaks, but not before it has done so once.
        if (isCluster && subscriber.status !== 'end') setTimeout(subscribe, RETRY_MAX_MS).unref();
      }
    };
    if (isCluster) {
      if (subscriber.status === 'ready') void subscribe();
      else subscriber.once('ready', subscribe);
      return () => {};
    }
    subscriber.on('ready', subscribe);
    subscriber.on('error', () => {}); // the connection of commands says why
    subscriber.connect().catch(() => {}); // it is tried again
    return () => subscriber.status === 'ready' && subscriber.disconnect(true);
  }

  close(): void {
    clearInterval(this.#looking);
    this.#client.disconnect();
    this.#subscriber?.disconnect();
  }

  get #usable(): boolean {
    return this.#client.status === 'ready' && !this.#leaving;
  }

  /** A connection that led to the wrong server was given up a moment ago, and the right one is being looked for. */
  get #isMoving(): boolean {
    return performance.now() - this.#misledAtMs < COMMAND_TIMEOUT_MS;
  }

  #isWrong(error: unknown): boolean {
    return isFromOtherServer(error) || (this.#address.kind !== 'cluster' && isFromClusterNode(error));
  }

  #mayRepeat(error: unknown, repeat: Repeat): boolean {
    if (repeat === 'never') return false;
    if (isFromOtherServer(error)) return true;
    if (error instanceof ReplyError) return false;
    return repeat === 'away' || (repeat === 'lost' && this.#isMoving);
  }

  /** Waits for the next attempt. @returns whether a connection was there in time. */
  async #readyAgain(attempt: number, untilMs: number): Promise<boolean> {
    // The client of a cluster stays ready while a node of it is lost.
    if (this.#client instanceof Cluster) await delay(backoff(attempt));
    for (;;) {
      const leftMs = untilMs - performance.now();
      if (leftMs <= 0 || this.#client.status === 'end') return false;
      if (this.#usable) return true;
      const enough = new AbortController();
      const late = delay(leftMs, undefined, { signal: enough.signal, ref: false }).catch(() => {});
      await Promise.race([this.#nextReady.promise, late]);
      enough.abort();
    }
  }

  #renewReady(): void {
    this.#nextReady.resolve();
    this.#nextReady = new Deferred();
  }

  /** Notes that the connection is given up. @returns false if it has been already. */
  #leave(): boolean {
    if (this.#leaving) return false;
    // The client of a cluster makes the connections to its nodes anew by itself.
    this.#leaving = this.#client instanceof Redis;
    this.#misled++;
    this.#misledAtMs = performance.now();
    return true;
  }

  /**
   * Looks whether the server is still the right one. After a failover only writes are refused: a client that only reads
   * would stay with the old master, and would read old data once that is not kept up to date any more. A server that
   * has been a replica from the start may be the one that was meant: it is left only if it has lost its master.
   */
  async #look(): Promise<void> {
    const client = this.#client;
    if (!(client instanceof Redis) || !this.#usable) return;
    try {
      const info = parseInfo(await client.info());
      this.#wrongKind = undefined;
      if (info.sentinel) this.#wrongKind = useSentinelUrl(this.#address);
      else if (info.clusterNode && mastersOf(await client.cluster('INFO')) > 1) {
        this.#wrongKind = useClusterUrl(this.#address);
      }
      if (info.role === 'master' && !info.loading) {
        this.#hasSeenMaster = true;
        this.#misled = 0;
      } else if (info.role === 'replica' && (this.#hasSeenMaster || !info.upToDate) && this.#usable && this.#leave()) {
        client.disconnect(true);
      }
    } catch {
      // The user may not have the right to ask. A broken connection shows in its own events.
    }
  }

  #unavailable(cause: unknown): ServingError {
    // The error is not kept as the cause: errors of ioredis carry the command and its arguments, those of AUTH too.
    const why = cause instanceof Error ? `${reason(cause)}${remedyFor(cause, this.#address)}` : 'not connected';
    return new ServingError('store_unavailable', `${this.address}: ${why}`);
  }
}

/** Why a command failed. The client of a cluster wraps the errors of its nodes. */
function reason(error: Error & { lastNodeError?: Error }): string {
  return error.lastNodeError ? `${error.message} (${error.lastNodeError.message})` : error.message;
}

type Reconnecting = Pick<RedisOptions, 'reconnectOnError' | 'retryStrategy' | 'autoResubscribe'>;

function makeClient(address: RedisAddress, reconnecting: Reconnecting): Redis | Cluster {
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
    ...reconnecting,
    disconnectTimeout: CLOSE_TIMEOUT_MS,
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
      maxLoadingRetryTime: RETRY_MAX_MS,
    });
  }
  // The check would wait for a server that loads. A command that is answered LOADING makes a new connection, which may
  // lead to another server.
  return new Redis({ ...options, ...nodes[0], enableReadyCheck: false });
}

function readPem(parameter: string, file: string | undefined): Buffer | undefined {
  if (file === undefined) return undefined;
  try {
    return readFileSync(file);
  } catch (cause) {
    throw new ServingError('config_invalid', `${parameter}=${file} of the store's URL: ${reasonOf(cause)}`, { cause });
  }
}
