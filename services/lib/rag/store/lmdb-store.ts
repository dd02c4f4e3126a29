/**
 * The index in an embedded LMDB. Any number of processes on one machine may read while one indexer per repository
 * writes. This file is the only importer of lmdb. The databases and their keys:
 *
 *   index   [repo]                   → head; [repo, 'ids'] → packed ids of chunks and files;
 *                                    [repo, 'left-out'] → files that were not indexed
 *   chunks  [repo, id]               → path, lines, tokens; of a file, path and lines
 *   rows    [repo, fingerprint, id]  → vectors, text
 *   locks   [repo]                   → token of the indexer at work, and when the lock expires
 *
 * Every write is a transaction that first compares the lock with the writer's token.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Database, type Key, open, type RootDatabase } from 'lmdb';
import { Turns } from '../../async/turns.ts';
import { ServingError } from '../../process/errors.ts';
import { makeFolder } from '../../process/os-errors.ts';
import { narrowedInWords, narrowWithin } from '../../process/private-files.ts';
import { assertRepoKey, isSideKey, tenantOf } from './repo-key.ts';
import {
  assertIds,
  decodeContent,
  decodeEntry,
  decodeHead,
  decodeLeftOut,
  decodeRows,
  encodeContent,
  encodeEntry,
  encodeHead,
  encodeLeftOut,
  idsOf,
  isSound,
  partOf,
  RowBudget,
} from './row.ts';
import type { ChunkRow, IndexSnapshot, IndexWriter, LeftOut, RowRead, Store, StoreLog } from './store.ts';

interface Lock {
  readonly token: string;
  /** In ms since 1970: the clock that all processes of a machine share. */
  readonly expiresAt: number;
  readonly ttlMs: number;
}

const lockFor = (token: string, ttlMs: number): Lock => ({ token, expiresAt: Date.now() + ttlMs, ttlMs });

/**
 * Whether somebody holds the lock. One with more time left than a lock is given dates from before the clock was set
 * back; it counts as free, since a living holder would have renewed it.
 */
function isHeld({ expiresAt, ttlMs }: Lock): boolean {
  const left = expiresAt - Date.now();
  return left > 0 && left <= ttlMs;
}

/** A part of a key that sorts after every string. */
const LAST = Buffer.from([0xff]);
const within = (...prefix: string[]) => ({ start: prefix, end: [...prefix, LAST] });

/** Where the files stand that were not indexed. */
const LEFT_OUT = 'left-out';

/** The names that LMDB gives its files. */
const FILES = ['data.mdb', 'lock.mdb'];

/** @throws ServingError store_unavailable if `dir` cannot be made or opened. */
export async function openLmdbStore(dir: string, log?: StoreLog): Promise<Store> {
  try {
    const narrowed = narrowedInWords(dir, await narrowWithin(dir, FILES));
    if (narrowed) log?.warn({ store: dir }, narrowed);
    await makeFolder(dir);
    // eventTurnBatching would commit batches whose promises nobody sees: a failed commit would end the process.
    return new LmdbStore(dir, open({ path: dir, noSubdir: false, maxDbs: 8, eventTurnBatching: false }));
  } catch (error) {
    throw new ServingError('store_unavailable', `lmdb:${dir}: ${ServingError.from(error).message}`, { cause: error });
  }
}

class LmdbStore implements Store {
  readonly address: string;
  readonly env: RootDatabase;
  readonly index: Database<Buffer, Key>;
  readonly chunks: Database<Buffer, Key>;
  readonly rows: Database<Buffer, Key>;
  readonly locks: Database<Lock, Key>;

  constructor(dir: string, env: RootDatabase) {
    this.address = `lmdb:${dir}`;
    this.env = env;
    const bytes = (name: string) => env.openDB<Buffer, Key>({ name: `1:${name}`, encoding: 'binary' });
    this.index = bytes('index');
    this.chunks = bytes('chunks');
    this.rows = bytes('rows');
    this.locks = env.openDB<Lock, Key>({ name: '1:locks', encoding: 'json' });
  }

  /**
   * Reads what is committed now. Without the reset, all reads in one turn of the event loop would see the same state.
   */
  async read<T>(action: () => T): Promise<T> {
    try {
      this.env.resetReadTxn();
      return action();
    } catch (error) {
      throw this.#unavailable(error);
    }
  }

  async write<T>(action: () => T): Promise<T> {
    try {
      return await this.env.transaction(action);
    } catch (error) {
      throw this.#unavailable(await commitFailure(error));
    }
  }

  #unavailable(error: unknown): ServingError {
    if (error instanceof ServingError) return error;
    return new ServingError('store_unavailable', `${this.address}: ${String(error)}`, { cause: error });
  }

  async head(repo: string) {
    assertRepoKey(repo);
    const bytes = await this.read(() => this.index.get([repo]));
    return bytes && decodeHead(repo, bytes);
  }

  async snapshot(repo: string) {
    assertRepoKey(repo);
    const [bytes, ids] = await this.read(() => [this.index.get([repo]), this.index.get([repo, 'ids'])]);
    if (!bytes) return undefined;
    const head = decodeHead(repo, bytes);
    return { head, ids: assertIds(repo, head, ids ?? Buffer.alloc(0)) };
  }

  async leftOut(repo: string) {
    assertRepoKey(repo);
    const bytes = await this.read(() => this.index.get([repo, LEFT_OUT]));
    return bytes && decodeLeftOut(repo, bytes);
  }

  async entries(repo: string, ids: readonly string[], read: RowRead = {}) {
    const budget = new RowBudget(read);
    const rows = await this.read(() => ids.map((id) => budget.take(this.chunks.get([repo, id]))));
    return decodeRows(ids, rows, read, decodeEntry);
  }

  async contents(repo: string, fingerprint: string, ids: readonly string[], read: RowRead = {}) {
    const budget = new RowBudget(read);
    const { part } = read;
    const rows = await this.read(() =>
      ids.map((id) => {
        const bytes = this.rows.get([repo, fingerprint, id]);
        return budget.take(bytes && partOf(bytes, part));
      }),
    );
    return decodeRows(ids, rows, read, (id, bytes) => decodeContent(id, bytes, part));
  }

  async repositories(tenant: string, which?: 'sides') {
    return this.read(() =>
      [...this.index.getKeys()]
        .filter((key) => typeof key === 'string') // a key of one part comes back as a string
        .filter((repo) => tenantOf(repo) === tenant && isSideKey(repo) === (which === 'sides'))
        .sort(),
    );
  }

  async lock(repo: string, ttlMs: number) {
    assertRepoKey(repo);
    const token = randomUUID();
    this.env.readerCheck(); // removes readers that died: they keep old pages from being reused
    const taken = await this.write(() => {
      const held = this.locks.get([repo]);
      if (held && isHeld(held)) return false;
      this.locks.put([repo], lockFor(token, ttlMs));
      return true;
    });
    if (!taken)
      throw new ServingError(
        'index_locked',
        `another indexer is at work on ${repo}, or died within the last ${ttlMs / 1000} s`,
      );
    return new LmdbWriter(this, repo, token, ttlMs);
  }

  async close() {
    await this.env.close();
  }
}

/** How long to wait for the library to say why a commit failed, in ms. */
const REASON_WITHIN_MS = 1_000;

/**
 * Why a commit failed, for instance because the disk is full. The library says it by another promise, whose rejection
 * we must handle.
 */
async function commitFailure(error: unknown): Promise<unknown> {
  const { commitError } = error as { readonly commitError?: Promise<never> };
  const reason = commitError?.catch((cause: unknown) => cause);
  return (await Promise.race([reason, sleep(REASON_WITHIN_MS, undefined, { ref: false })])) ?? error;
}

/** Rows that are looked at between two steps: about 1 ms. */
const ROWS_PER_STEP = 32;

class LmdbWriter implements IndexWriter {
  readonly #store: LmdbStore;
  readonly #repo: string;
  readonly #token: string;
  readonly #renewal: NodeJS.Timeout;

  constructor(store: LmdbStore, repo: string, token: string, ttlMs: number) {
    this.#store = store;
    this.#repo = repo;
    this.#token = token;
    const renew = () => this.#guarded(() => store.locks.put([repo], lockFor(token, ttlMs)));
    // If a renewal fails, the next one makes up for it, or the next write reports it.
    this.#renewal = setInterval(() => void renew().catch(() => {}), ttlMs / 3);
    this.#renewal.unref();
  }

  async stored(fingerprint: string) {
    const { rows, chunks } = this.#store;
    const all = await this.#store.read(() => [...rows.getKeys(within(this.#repo, fingerprint))].map(lastPart));
    const sound = new Set<string>();
    const turns = new Turns();
    for (let start = 0; start < all.length; start += ROWS_PER_STEP) {
      if (turns.over) await turns.next();
      await this.#store.read(() => {
        for (const id of all.slice(start, start + ROWS_PER_STEP)) {
          const entry = chunks.get([this.#repo, id]);
          if (isSound(id, entry, rows.get([this.#repo, fingerprint, id]))) sound.add(id);
        }
      });
    }
    return sound;
  }

  async put(fingerprint: string, rows: readonly ChunkRow[]) {
    const encoded = rows.map((row) => [row.chunk.id, encodeEntry(row.chunk), encodeContent(row)] as const);
    await this.#guarded(() => {
      for (const [id, entry, content] of encoded) {
        this.#store.chunks.put([this.#repo, id], entry);
        this.#store.rows.put([this.#repo, fingerprint, id], content);
      }
    });
  }

  async publish({ head, ids }: IndexSnapshot) {
    await this.#guarded(() => {
      this.#store.index.put([this.#repo], encodeHead(head));
      this.#store.index.put([this.#repo, 'ids'], ids);
    });
  }

  async putLeftOut(leftOut: LeftOut) {
    await this.#guarded(() => this.#store.index.put([this.#repo, LEFT_OUT], encodeLeftOut(leftOut)));
  }

  async sweep(kept?: IndexSnapshot) {
    const { chunks, rows } = this.#store;
    const current = await this.#store.snapshot(this.#repo);
    if (!current) return 0;
    const versions = kept ? [current, kept] : [current];
    const named = idsOf(versions, 'hex');
    const namedBy = new Map(
      versions.map(({ head: { fingerprint } }) => [fingerprint, idsOf(versions, 'hex', fingerprint)]),
    );
    const swept = await this.#store.read(() => ({
      rows: [...rows.getKeys(within(this.#repo))].filter((key) => {
        const [, fingerprint, id] = key as [string, string, string];
        return !namedBy.get(fingerprint)?.has(id);
      }),
      chunks: [...chunks.getKeys(within(this.#repo))].filter((key) => !named.has(lastPart(key))),
    }));
    if (swept.rows.length + swept.chunks.length === 0) return 0;
    await this.#guarded(() => {
      for (const key of swept.rows) rows.remove(key);
      for (const key of swept.chunks) chunks.remove(key);
    });
    return swept.chunks.length;
  }

  async remove() {
    const { index, chunks, rows } = this.#store;
    let published = false;
    await this.#guarded(() => {
      published = index.doesExist([this.#repo]);
      index.remove([this.#repo]);
      index.remove([this.#repo, 'ids']);
      index.remove([this.#repo, LEFT_OUT]);
      for (const database of [chunks, rows]) {
        for (const key of [...database.getKeys(within(this.#repo))]) database.remove(key);
      }
    });
    return published;
  }

  async release() {
    clearInterval(this.#renewal);
    await this.#store.write(() => {
      if (this.#store.locks.get([this.#repo])?.token === this.#token) this.#store.locks.remove([this.#repo]);
    });
  }

  /** Writes, if the lock is still ours. @throws ServingError index_locked */
  async #guarded(action: () => void) {
    const held = await this.#store.write(() => {
      if (this.#store.locks.get([this.#repo])?.token !== this.#token) return false;
      action();
      return true;
    });
    if (!held) {
      throw new ServingError(
        'index_locked',
        `this run lost its lock on ${this.#repo} to another indexer, or in a long pause, and published nothing`,
      );
    }
  }
}

const lastPart = (key: Key) => (key as string[]).at(-1) as string;
