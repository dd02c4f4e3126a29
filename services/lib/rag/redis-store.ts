/**
 * The index in Redis, and the only importer of ioredis. Keys of one repository, in one cluster slot by their hash tag:
 *
 *   llavacode:1:{REPO}:index         hash: head → JSON, ids → packed chunk ids. Replaced by one HSET.
 *   llavacode:1:{REPO}:chunks        hash: chunk id → path, lines, tokens
 *   llavacode:1:{REPO}:rows:FP       hash: chunk id → vector, text; FP is a fingerprint
 *   llavacode:1:{REPO}:fingerprints  set of FP
 *   llavacode:1:{REPO}:lock          token of the indexer at work, with a time to live
 *
 * Every write is a script that first compares the lock with the writer's token, so that an indexer which was paused
 * beyond its lock changes nothing.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { ServingError } from '../process/errors.ts';
import {
  checkIds,
  decodeContent,
  decodeEntry,
  decodeHead,
  encodeContent,
  encodeEntry,
  encodeHead,
  ID_BYTES,
} from './row.ts';
import { checkRepoName, type IndexSnapshot, type IndexWriter, type Row, type Store } from './store.ts';

const CONNECT_TIMEOUT_MS = 2_000;
const COMMAND_TIMEOUT_MS = 5_000;
const RETRY_MAX_MS = 2_000;
/** Ids of one removal; bounded by what Lua's unpack() takes. */
const SWEEP_BATCH = 1_000;

const keysOf = (repo: string) => {
  const prefix = `llavacode:1:{${repo}}:`;
  return {
    index: `${prefix}index`,
    chunks: `${prefix}chunks`,
    rows: (fingerprint: string) => `${prefix}rows:${fingerprint}`,
    fingerprints: `${prefix}fingerprints`,
    lock: `${prefix}lock`,
  };
};
type Keys = ReturnType<typeof keysOf>;

/** KEYS[1] is the lock, ARGV[1] the token; 0 when it is not ours. */
const guarded = (body: string) => `if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end ${body} return 1`;
const SCRIPT = {
  renew: guarded(`redis.call('PEXPIRE', KEYS[1], ARGV[2])`),
  release: guarded(`redis.call('DEL', KEYS[1])`),
  put: guarded(`redis.call('SADD', KEYS[2], ARGV[2])
    for i = 3, #ARGV, 3 do
      redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
      redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 2])
    end`),
  publish: guarded(`redis.call('HSET', KEYS[2], 'head', ARGV[2], 'ids', ARGV[3])`),
  remove: guarded(`redis.call('HDEL', KEYS[2], unpack(ARGV, 2))`),
  drop: guarded(`redis.call('UNLINK', KEYS[3]) redis.call('SREM', KEYS[2], ARGV[2])`),
};

/**
 * Connects in the background, and again with backoff whenever the connection breaks.
 * @throws ServingError config_invalid for what is no URL.
 */
export function openRedisStore(url: string): Store {
  return new RedisStore(url);
}

function parseUrl(url: string): URL {
  try {
    return new URL(url);
  } catch {
    // The URL may hold a password: it is not repeated.
    throw new ServingError('config_invalid', 'the store is no valid redis:// URL: redis://[user:password@]host[:port]');
  }
}

class RedisStore implements Store {
  readonly address: string;
  readonly #client: Redis;
  readonly #firstAttempt: Promise<unknown>;
  #lastError: Error | undefined;

  constructor(url: string) {
    const { protocol, host } = parseUrl(url);
    this.address = `${protocol}//${host}`;
    this.#client = new Redis(url, {
      lazyConnect: true,
      connectTimeout: CONNECT_TIMEOUT_MS,
      commandTimeout: COMMAND_TIMEOUT_MS,
      // A command that meets a broken connection fails at once: a completion goes on without context instead of waiting.
      enableOfflineQueue: false,
      maxRetriesPerRequest: 0,
      autoResendUnfulfilledCommands: false,
      retryStrategy: (attempt) => Math.min(50 * 2 ** Math.min(attempt, 10), RETRY_MAX_MS),
      connectionName: 'llavacode',
    });
    this.#client.on('error', (error) => {
      this.#lastError = error;
    });
    const connected = this.#client.connect().catch((error: Error) => {
      this.#lastError ??= error;
    });
    this.#firstAttempt = Promise.race([connected, delay(CONNECT_TIMEOUT_MS, undefined, { ref: false })]);
  }

  /** Runs commands; only the first ones wait, for the first attempt to connect. */
  async run<T>(commands: (client: Redis) => Promise<T>): Promise<T> {
    await this.#firstAttempt;
    if (this.#client.status !== 'ready') throw this.#unavailable(this.#lastError);
    try {
      return await commands(this.#client);
    } catch (error) {
      if (error instanceof ServingError) throw error;
      throw this.#unavailable(error);
    }
  }

  #unavailable(cause: unknown): ServingError {
    // Not kept as the cause: errors of ioredis carry the command with its arguments, of AUTH too.
    const why = cause instanceof Error ? cause.message : 'not connected';
    return new ServingError('store_unavailable', `${this.address}: ${why}`);
  }

  async head(repo: string) {
    checkRepoName(repo);
    const head = await this.run((client) => client.hgetBuffer(keysOf(repo).index, 'head'));
    return head ? decodeHead(repo, head) : undefined;
  }

  async snapshot(repo: string) {
    checkRepoName(repo);
    const [bytes, ids] = await this.run((client) => client.hmgetBuffer(keysOf(repo).index, 'head', 'ids'));
    if (!bytes) return undefined;
    const head = decodeHead(repo, bytes);
    return { head, ids: checkIds(repo, head, ids ?? Buffer.alloc(0)) };
  }

  async entries(repo: string, ids: readonly string[]) {
    return this.#fields(keysOf(repo).chunks, ids, decodeEntry);
  }

  async contents(repo: string, fingerprint: string, ids: readonly string[]) {
    return this.#fields(keysOf(repo).rows(fingerprint), ids, decodeContent);
  }

  async #fields<T>(key: string, ids: readonly string[], decode: (id: string, bytes: Buffer) => T) {
    if (ids.length === 0) return [];
    const values = await this.run((client) => client.hmgetBuffer(key, ...ids.map((id) => Buffer.from(id, 'hex'))));
    return values.map((bytes, i) => (bytes ? decode(ids[i] as string, bytes) : undefined));
  }

  async lock(repo: string, ttlMs: number) {
    checkRepoName(repo);
    const keys = keysOf(repo);
    const token = randomUUID();
    const taken = await this.run((client) => client.set(keys.lock, token, 'PX', ttlMs, 'NX'));
    if (taken !== 'OK')
      throw new ServingError(
        'index_locked',
        `another indexer is at work on ${repo} (or died within the last ${ttlMs / 1000} s)`,
      );
    return new RedisWriter(this, repo, keys, token, ttlMs);
  }

  async close() {
    this.#client.disconnect();
  }
}

class RedisWriter implements IndexWriter {
  readonly #store: RedisStore;
  readonly #repo: string;
  readonly #keys: Keys;
  readonly #token: string;
  readonly #renewal: NodeJS.Timeout;

  constructor(store: RedisStore, repo: string, keys: Keys, token: string, ttlMs: number) {
    this.#store = store;
    this.#repo = repo;
    this.#keys = keys;
    this.#token = token;
    // A renewal that fails is made good by the next one, or else the next write reports it.
    this.#renewal = setInterval(() => void this.#guarded('renew', [], [ttlMs]).catch(() => {}), ttlMs / 3);
    this.#renewal.unref();
  }

  async stored(fingerprint: string) {
    const [chunks, rows] = await this.#store.run((client) =>
      Promise.all([client.hkeysBuffer(this.#keys.chunks), client.hkeysBuffer(this.#keys.rows(fingerprint))]),
    );
    const entries = new Set(chunks.map((id) => id.toString('hex')));
    return new Set(rows.map((id) => id.toString('hex')).filter((id) => entries.has(id)));
  }

  async put(fingerprint: string, rows: readonly Row[]) {
    const { fingerprints, chunks, rows: rowsKey } = this.#keys;
    const fields = rows.flatMap((row) => [
      Buffer.from(row.chunk.id, 'hex'),
      encodeEntry(row.chunk),
      encodeContent(row),
    ]);
    await this.#guarded('put', [fingerprints, chunks, rowsKey(fingerprint)], [fingerprint, ...fields]);
  }

  async publish({ head, ids }: IndexSnapshot) {
    await this.#guarded('publish', [this.#keys.index], [encodeHead(head), ids]);
  }

  async sweep() {
    const snapshot = await this.#store.snapshot(this.#repo);
    if (!snapshot) return 0;
    const { ids, head } = snapshot;
    const keep = new Set<string>();
    for (let at = 0; at < ids.length; at += ID_BYTES) keep.add(ids.toString('latin1', at, at + ID_BYTES));
    const fingerprints = await this.#store.run((client) => client.smembers(this.#keys.fingerprints));
    for (const fingerprint of fingerprints) {
      if (fingerprint === head.fingerprint) continue;
      await this.#guarded('drop', [this.#keys.fingerprints, this.#keys.rows(fingerprint)], [fingerprint]);
    }
    await this.#removeAllBut(keep, this.#keys.rows(head.fingerprint));
    return this.#removeAllBut(keep, this.#keys.chunks);
  }

  /** @param keep ids in latin1. */
  async #removeAllBut(keep: ReadonlySet<string>, key: string): Promise<number> {
    const size = await this.#store.run((client) => client.hlen(key));
    if (size === keep.size) return 0;
    const ids = await this.#store.run((client) => client.hkeysBuffer(key));
    const gone = ids.filter((id) => !keep.has(id.toString('latin1')));
    for (let at = 0; at < gone.length; at += SWEEP_BATCH) {
      await this.#guarded('remove', [key], gone.slice(at, at + SWEEP_BATCH));
    }
    return gone.length;
  }

  async release() {
    clearInterval(this.#renewal);
    await this.#store.run((client) => client.eval(SCRIPT.release, 1, this.#keys.lock, this.#token));
  }

  async #guarded(script: keyof typeof SCRIPT, keys: readonly string[], args: readonly (string | Buffer | number)[]) {
    const held = await this.#store.run((client) =>
      client.eval(SCRIPT[script], keys.length + 1, this.#keys.lock, ...keys, this.#token, ...args),
    );
    if (held !== 1) {
      throw new ServingError(
        'index_locked',
        `this run lost its lock on ${this.#repo}, to another indexer or by a long pause, and published nothing`,
      );
    }
  }
}
