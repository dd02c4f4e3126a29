/**
 * Changes the index in Redis. Every write is a script that first compares the lock with the writer's token, so an
 * indexer that was paused for longer than its lock lasts changes nothing. No command walks a whole hash at once: ids
 * are listed in steps (HSCAN), so that completions are served in between.
 *
 * If the server is away for a moment, or gives its place to another one, a run goes on: its commands are sent again
 * (Repeat 'away'), since each of them may be carried out twice. Only the new version is not sent again: its rows were
 * read back from the server that was there before, and the next one may lack the last of them.
 */
import { ServingError } from '../../process/errors.ts';
import type { RedisConnection, Repeat } from '../../redis/connection.ts';
import { keysOf, LEFT_OUT, type RedisKeys } from './redis-keys.ts';
import { encodeContent, encodeEntry, encodeHead, encodeLeftOut, idsOf } from './row.ts';
import type { ChunkRow, IndexSnapshot, IndexWriter, LeftOut, Store } from './store.ts';

/** KEYS[1] is the lock and ARGV[1] the token; the script returns 0 if the lock is not ours. */
const guarded = (body: string) => `if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end ${body} return 1`;
/** The checksum of an entry and a content, on the server: about 6 µs. */
const SUM = `local function sum(entry, content) return redis.sha1hex(entry .. content):sub(1, 16) end`;
const SCRIPT = {
  check: guarded(''),
  renew: guarded(`redis.call('PEXPIRE', KEYS[1], ARGV[2])`),
  release: guarded(`redis.call('DEL', KEYS[1])`),
  put: guarded(`${SUM} redis.call('SADD', KEYS[2], ARGV[2])
    for i = 3, #ARGV, 3 do
      redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
      redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 2])
      redis.call('HSET', KEYS[5], ARGV[i], sum(ARGV[i + 1], ARGV[i + 2]))
    end`),
  publish: guarded(`redis.call('HSET', KEYS[2], 'head', ARGV[2], 'ids', ARGV[3])`),
  set: guarded(`redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])`),
  remove: guarded(`redis.call('HDEL', KEYS[2], unpack(ARGV, 2))`),
  drop: guarded(`redis.call('UNLINK', unpack(KEYS, 3)) redis.call('SREM', KEYS[2], ARGV[2])`),
  unlink: guarded(`redis.call('UNLINK', unpack(KEYS, 2))`),
};
/**
 * One step of a walk over a hash. The values, which are the bulk, stay in the server (HSCAN NOVALUES needs Redis 7.4).
 */
const SCAN = `local step = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
  local fields = {}
  for i = 1, #step[2], 2 do fields[#fields + 1] = step[2][i] end
  return {step[1], fields}`;
/** Fields per step: about 1 ms of the server's time. */
const SCAN_COUNT = 500;
/**
 * One step of a walk over rows, which answers the ids of those that are as they were written. Of a row that has no
 * checksum, from a release that wrote none, the sizes must be right. KEYS: rows, chunks, checksums.
 */
const CHECK = `${SUM} local step = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
  local sound = {}
  for i = 1, #step[2], 2 do
    local id, content = step[2][i], step[2][i + 1]
    local entry, wanted = redis.call('HGET', KEYS[2], id), redis.call('HGET', KEYS[3], id)
    local good = false
    if entry and wanted then good = sum(entry, content) == wanted
    elseif entry and #content >= 8 then
      local vector, embedding = struct.unpack('<I4I4', content)
      good = 8 + vector + embedding <= #content
    end
    if good then sound[#sound + 1] = id end
  end
  return {step[1], sound}`;
/** Rows per step: about 1 ms of the server's time. */
const CHECK_COUNT = 100;
/** Ids per removal, bounded by what Lua's unpack() takes. */
const SWEEP_BATCH = 1_000;

export class RedisWriter implements IndexWriter {
  readonly #redis: RedisConnection;
  readonly #store: Store;
  readonly #repo: string;
  readonly #keys: RedisKeys;
  readonly #token: string;
  readonly #renewal: NodeJS.Timeout;

  /** @param token is already in the lock, for `ttlMs`. */
  constructor(redis: RedisConnection, store: Store, repo: string, token: string, ttlMs: number) {
    this.#redis = redis;
    this.#store = store;
    this.#repo = repo;
    this.#keys = keysOf(repo);
    this.#token = token;
    // If a renewal fails, the next one makes up for it, or the next write reports it.
    this.#renewal = setInterval(() => void this.#guarded('renew', [], [ttlMs]).catch(() => {}), ttlMs / 3);
    this.#renewal.unref();
  }

  async stored(fingerprint: string) {
    const { rows, chunks, sums } = this.#keys;
    const keys = [rows(fingerprint), chunks, sums(fingerprint)];
    const ids = new Set<string>();
    for await (const id of this.#walk(CHECK, keys, CHECK_COUNT)) ids.add(id.toString('hex'));
    return ids;
  }

  async put(fingerprint: string, rows: readonly ChunkRow[]) {
    const { fingerprints, chunks, rows: rowsKey, sums } = this.#keys;
    const fields = rows.flatMap((row) => [
      Buffer.from(row.chunk.id, 'hex'),
      encodeEntry(row.chunk),
      encodeContent(row),
    ]);
    const keys = [fingerprints, chunks, rowsKey(fingerprint), sums(fingerprint)];
    await this.#guarded('put', keys, [fingerprint, ...fields]);
  }

  async publish({ head, ids }: IndexSnapshot) {
    await this.#guarded('publish', [this.#keys.index], [encodeHead(head), ids], 'never');
    await this.#list();
  }

  async putLeftOut(leftOut: LeftOut) {
    await this.#guarded('set', [this.#keys.index], [LEFT_OUT, encodeLeftOut(leftOut)]);
  }

  /** Lists the repository. The list lies in another slot, so this is a step of its own; the next sweep repeats it. */
  async #list() {
    await this.#redis.run((client) => client.sadd(this.#keys.published, this.#repo), 'away');
  }

  async sweep(kept?: IndexSnapshot) {
    const current = await this.#store.snapshot(this.#repo);
    if (!current) return 0;
    await this.#list();
    const versions = kept ? [current, kept] : [current];
    for (const fingerprint of await this.#fingerprints()) {
      const hashes = [this.#keys.rows(fingerprint), this.#keys.sums(fingerprint)];
      const named = idsOf(versions, 'latin1', fingerprint);
      if (named.size > 0) for (const key of hashes) await this.#removeAllBut(named, key);
      else await this.#guarded('drop', [this.#keys.fingerprints, ...hashes], [fingerprint]);
    }
    return this.#removeAllBut(idsOf(versions, 'latin1'), this.#keys.chunks);
  }

  /** @param keep ids as latin1. */
  async #removeAllBut(keep: ReadonlySet<string>, key: string): Promise<number> {
    const size = await this.#redis.run((client) => client.hlen(key), 'away');
    if (size === keep.size) return 0;
    const gone = new Map<string, Buffer>(); // a walk may yield a field twice
    for await (const id of this.#fieldsOf(key)) {
      const name = id.toString('latin1');
      if (!keep.has(name)) gone.set(name, id);
    }
    const ids = [...gone.values()];
    for (let at = 0; at < ids.length; at += SWEEP_BATCH) {
      await this.#guarded('remove', [key], ids.slice(at, at + SWEEP_BATCH));
    }
    return ids.length;
  }

  async remove() {
    const { index, chunks, rows, sums, fingerprints, published } = this.#keys;
    const existed = await this.#redis.run((client) => client.exists(index), 'away');
    await this.#guarded('check', [], []);
    // Take it off the list first. If this process dies here, the index that is not listed can still be used, while an
    // index that is listed and gone would count as lost.
    const listed = await this.#redis.run((client) => client.srem(published, this.#repo), 'away');
    const all = (await this.#fingerprints()).flatMap((fingerprint) => [rows(fingerprint), sums(fingerprint)]);
    await this.#guarded('unlink', [index, chunks, fingerprints, ...all], []);
    return existed + listed > 0;
  }

  async release() {
    clearInterval(this.#renewal);
    await this.#redis.run((client) => client.eval(SCRIPT.release, 1, this.#keys.lock, this.#token));
  }

  #fingerprints(): Promise<string[]> {
    return this.#redis.run((client) => client.smembers(this.#keys.fingerprints), 'away');
  }

  /** Fields of a hash: all that were there throughout the walk, some of them perhaps twice. */
  #fieldsOf(key: string): AsyncGenerator<Buffer> {
    return this.#walk(SCAN, [key], SCAN_COUNT);
  }

  /** Walks over a hash by a script that answers the next cursor and some fields. */
  async *#walk(script: string, keys: readonly string[], count: number): AsyncGenerator<Buffer> {
    let cursor = '0';
    do {
      const step = await this.#redis.run(
        (client) => client.callBuffer('EVAL', script, keys.length, ...keys, cursor, count),
        'away',
      );
      const [next, fields] = step as [Buffer, Buffer[]];
      yield* fields;
      cursor = next.toString();
    } while (cursor !== '0');
  }

  /** Runs a script, if the lock is still ours. @throws ServingError index_locked */
  async #guarded(
    script: keyof typeof SCRIPT,
    keys: readonly string[],
    args: readonly (string | Buffer | number)[],
    repeat: Repeat = 'away',
  ) {
    const held = await this.#redis.run(
      (client) => client.eval(SCRIPT[script], keys.length + 1, this.#keys.lock, ...keys, this.#token, ...args),
      repeat,
    );
    if (held !== 1) {
      throw new ServingError(
        'index_locked',
        `this run lost its lock on ${this.#repo} to another indexer, in a long pause or in a failover, and published nothing`,
      );
    }
  }
}
