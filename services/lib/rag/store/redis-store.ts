/** The index in Redis, as readers see it. Its keys are in redis-keys.ts, writing is in redis-writer.ts. */
import { randomUUID } from 'node:crypto';
import { ServingError } from '../../process/errors.ts';
import { RedisConnection, type Repeat } from '../../redis/connection.ts';
import { keysOf, publishedKey } from './redis-keys.ts';
import { RedisWriter } from './redis-writer.ts';
import { assertRepoKey } from './repo-key.ts';
import { assertIds, decodeContent, decodeEntry, decodeHead } from './row.ts';
import type { Store, StoreUse } from './store.ts';

/**
 * Opens the store. It connects in the background, and again with backoff whenever the connection breaks.
 * @throws ServingError config_invalid for a text that is not a URL of Redis.
 */
export function openRedisStore(url: string, use: StoreUse): Store {
  return new RedisStore(new RedisConnection(url), use === 'indexing' ? 'away' : 'lost');
}

class RedisStore implements Store {
  readonly #redis: RedisConnection;
  /** When a read is sent again. */
  readonly #repeat: Repeat;

  constructor(redis: RedisConnection, repeat: Repeat) {
    this.#redis = redis;
    this.#repeat = repeat;
  }

  get address() {
    return this.#redis.address;
  }

  async head(repo: string) {
    assertRepoKey(repo);
    const { index, published } = keysOf(repo);
    const head = await this.#redis.run((client) => client.hgetBuffer(index, 'head'), this.#repeat);
    if (head) return decodeHead(repo, head);
    const wasPublished = await this.#redis.run((client) => client.sismember(published, repo), this.#repeat);
    if (wasPublished === 1) {
      throw new ServingError('store_invalid', `the index of ${repo} was published and is gone (was its key evicted?)`);
    }
    return undefined;
  }

  async snapshot(repo: string) {
    assertRepoKey(repo);
    const [bytes, ids] = await this.#redis.run(
      (client) => client.hmgetBuffer(keysOf(repo).index, 'head', 'ids'),
      this.#repeat,
    );
    if (!bytes) return undefined;
    const head = decodeHead(repo, bytes);
    return { head, ids: assertIds(repo, head, ids ?? Buffer.alloc(0)) };
  }

  async entries(repo: string, ids: readonly string[]) {
    return this.#fields(keysOf(repo).chunks, ids, decodeEntry);
  }

  async contents(repo: string, fingerprint: string, ids: readonly string[]) {
    return this.#fields(keysOf(repo).rows(fingerprint), ids, decodeContent);
  }

  async #fields<T>(key: string, ids: readonly string[], decode: (id: string, bytes: Buffer) => T) {
    if (ids.length === 0) return [];
    const fields = ids.map((id) => Buffer.from(id, 'hex'));
    const values = await this.#redis.run((client) => client.hmgetBuffer(key, ...fields), this.#repeat);
    return values.map((bytes, i) => (bytes ? decode(ids[i] as string, bytes) : undefined));
  }

  async repositories(tenant: string) {
    const repos = await this.#redis.run((client) => client.smembers(publishedKey(tenant)), this.#repeat);
    return repos.sort();
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
  }
}
