/**
 * The index in Redis, as readers see it. Its keys are in redis-keys.ts, writing is in redis-writer.ts.
 *
 * Rows come over a connection of their own: on one that they share, the head of every repository would wait behind the
 * rows of the largest one, and a store that answers well would look slow.
 */
import { randomUUID } from 'node:crypto';
import { ServingError } from '../../process/errors.ts';
import { RedisConnection, type Repeat } from '../../redis/connection.ts';
import { keysOf, LEFT_OUT, publishedKey } from './redis-keys.ts';
import { RedisWriter } from './redis-writer.ts';
import { assertRepoKey, isSideKey } from './repo-key.ts';
import { assertIds, decodeContent, decodeEntry, decodeHead, decodeLeftOut, decodeRows, type StoredRow } from './row.ts';
import type { RowPart, RowRead, Store, StoreUse } from './store.ts';

/**
 * Reads rows of a hash: one by one, so that the server, and not the reader, leaves out what is too large, and what
 * nobody asked for. For each field it answers the row, its size if it is too large, -1 if no bytes are left for it, or
 * nothing if it is not there. Rows are cut as in `partOf` of row.ts. Cutting copies the whole row on the server, so a
 * row of more than twice the limit is not looked at, and nothing is after the first row for which no bytes are left.
 *
 * ARGV: the part, the most bytes of a row, the most of all, then the fields.
 */
const READ = `local part, most, left, rows = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), {}
  local looked = part == 'whole' and most or 2 * most
  for i = 4, #ARGV do
    local size = redis.call('HSTRLEN', KEYS[1], ARGV[i])
    local value = size
    if size == 0 then value = false
    elseif left == 0 then value = -1
    elseif size <= looked then
      value = redis.call('HGET', KEYS[1], ARGV[i])
      if part ~= 'whole' and size >= 8 then
        local vector, embedding = struct.unpack('<I4I4', value)
        local stop = 8 + vector + embedding
        if stop > size then value = value:sub(1, 7)
        elseif part == 'vectors' then value = value:sub(1, stop)
        else value = value:sub(1, 8) .. value:sub(stop + 1) end
      end
      if #value > most then value = #value
      elseif #value > left then value, left = -1, 0
      else left = left - #value end
    end
    rows[#rows + 1] = value
  end
  return rows`;
/** Stands for a number of bytes that is not limited. */
const UNLIMITED = Number.MAX_SAFE_INTEGER;

/**
 * Opens the store. It connects in the background, and again with backoff whenever the connection breaks.
 * @throws ServingError config_invalid for a text that is not a URL of Redis.
 */
export function openRedisStore(url: string, use: StoreUse): Store {
  const redis = new RedisConnection(url);
  return use === 'indexing'
    ? new RedisStore(redis, redis, 'away')
    : new RedisStore(redis, new RedisConnection(url), 'lost');
}

class RedisStore implements Store {
  readonly #redis: RedisConnection;
  /** The connection for what may be large. */
  readonly #rows: RedisConnection;
  /** When a read is sent again. */
  readonly #repeat: Repeat;

  constructor(redis: RedisConnection, rows: RedisConnection, repeat: Repeat) {
    this.#redis = redis;
    this.#rows = rows;
    this.#repeat = repeat;
  }

  get address() {
    return this.#redis.address;
  }

  async head(repo: string) {
    assertRepoKey(repo);
    const { index, published } = keysOf(repo);
    const head = await damageTold(
      repo,
      this.#redis.run((client) => client.hgetBuffer(index, 'head'), this.#repeat),
    );
    if (head) return decodeHead(repo, head);
    const wasPublished = await this.#redis.run((client) => client.sismember(published, repo), this.#repeat);
    if (wasPublished === 1) {
      throw new ServingError('store_invalid', `the index of ${repo} was published and is gone (was its key evicted?)`);
    }
    return undefined;
  }

  async snapshot(repo: string) {
    assertRepoKey(repo);
    const [bytes, ids] = await damageTold(
      repo,
      this.#rows.run((client) => client.hmgetBuffer(keysOf(repo).index, 'head', 'ids'), this.#repeat),
    );
    if (!bytes) return undefined;
    const head = decodeHead(repo, bytes);
    return { head, ids: assertIds(repo, head, ids ?? Buffer.alloc(0)) };
  }

  async leftOut(repo: string) {
    assertRepoKey(repo);
    const bytes = await damageTold(
      repo,
      this.#rows.run((client) => client.hgetBuffer(keysOf(repo).index, LEFT_OUT), this.#repeat),
    );
    return bytes ? decodeLeftOut(repo, bytes) : undefined;
  }

  async entries(repo: string, ids: readonly string[], read: RowRead = {}) {
    const rows = await this.#fields(repo, keysOf(repo).chunks, ids, undefined, read);
    return decodeRows(ids, rows, read, decodeEntry);
  }

  async contents(repo: string, fingerprint: string, ids: readonly string[], read: RowRead = {}) {
    const { part } = read;
    const rows = await this.#fields(repo, keysOf(repo).rows(fingerprint), ids, part, read);
    return decodeRows(ids, rows, read, (id, bytes) => decodeContent(id, bytes, part));
  }

  async #fields(
    repo: string,
    key: string,
    ids: readonly string[],
    part: RowPart | undefined,
    { rowBytes = UNLIMITED, bytes = UNLIMITED }: RowRead,
  ): Promise<StoredRow[]> {
    if (ids.length === 0) return [];
    const fields = ids.map((id) => Buffer.from(id, 'hex'));
    const args = [part ?? 'whole', rowBytes, bytes, ...fields];
    const rows = await damageTold(
      repo,
      this.#rows.run((client) => client.callBuffer('EVAL', READ, 1, key, ...args), this.#repeat),
    );
    return (rows as (Buffer | number | null)[]).map((row) => row ?? undefined);
  }

  async repositories(tenant: string, which?: 'sides') {
    const repos = await this.#redis.run((client) => client.smembers(publishedKey(tenant)), this.#repeat);
    return repos.filter((repo) => isSideKey(repo) === (which === 'sides')).sort();
  }

  async lock(repo: string, ttlMs: number) {
    assertRepoKey(repo);
    const keys = keysOf(repo);
    const token = randomUUID();
    // It would find its own lock if it was carried out twice.
    const taken = await this.#redis.run((client) => client.set(keys.lock, token, 'PX', ttlMs, 'NX'), 'refused');
    if (taken !== 'OK')
      throw new ServingError(
        'index_locked',
        `another indexer is at work on ${repo}, or died within the last ${ttlMs / 1000} s`,
      );
    return new RedisWriter(this.#redis, this, repo, token, ttlMs);
  }

  async close() {
    this.#redis.close();
    this.#rows.close();
  }
}

/**
 * Tells a key that holds something else from a server that does not answer: the repository is damaged, and the store is
 * well.
 * @throws ServingError store_invalid.
 */
async function damageTold<T>(repo: string, answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    if (!/\bWRONGTYPE\b/.test((error as Error).message)) throw error;
    throw new ServingError('store_invalid', `a key of the index of ${repo} does not hold a hash`, { cause: error });
  }
}
