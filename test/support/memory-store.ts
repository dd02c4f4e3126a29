/** A store whose rows lie in memory as bytes, in the form of the real ones: tests damage, delay and count them. */
import { ServingError } from '../../services/lib/process/errors.ts';
import { chunkFile } from '../../services/lib/rag/chunk.ts';
import { DEFAULT_TENANT, isSideKey, tenantOf } from '../../services/lib/rag/store/repo-key.ts';
import {
  assertIds,
  decodeContent,
  decodeEntry,
  decodeHead,
  decodeRows,
  encodeContent,
  encodeEntry,
  encodeHead,
  packIds,
  partOf,
  RowBudget,
} from '../../services/lib/rag/store/row.ts';
import type { ChunkRow, IndexHead, IndexWriter, LeftOut, RowRead, Store } from '../../services/lib/rag/store/store.ts';

export const FINGERPRINT = 'context';
/** Values of a vector. */
export const HIDDEN = 2;

/** A read that a store was asked for. */
export interface Asked {
  readonly repo: string;
  readonly what: 'head' | 'snapshot' | 'entries' | 'contents';
  readonly ids: readonly string[];
  readonly read: RowRead;
}

export class MemoryStore implements Store {
  readonly address = 'memory';
  readonly heads = new Map<string, Buffer>();
  readonly ids = new Map<string, Buffer>();
  readonly leftOuts = new Map<string, LeftOut>();
  /** By `repo id`. */
  readonly entryBytes = new Map<string, Buffer>();
  readonly contentBytes = new Map<string, Buffer>();
  /** All reads so far. */
  readonly asked: Asked[] = [];
  /** Awaited before a read is answered. */
  delay: (asked: Asked) => Promise<unknown> = async () => {};

  /** Makes these rows the repository's index. */
  publish(repo: string, rows: readonly ChunkRow[], head: Partial<IndexHead> = {}): void {
    for (const row of rows) {
      this.entryBytes.set(`${repo} ${row.chunk.id}`, encodeEntry(row.chunk));
      this.contentBytes.set(`${repo} ${row.chunk.id}`, encodeContent(row));
    }
    const whole = {
      version: '1'.repeat(16),
      fingerprint: FINGERPRINT,
      hidden: HIDDEN,
      files: 1,
      chunks: rows.length,
      languages: {},
      indexedAt: new Date(0).toISOString(),
      ...head,
    };
    this.heads.set(repo, encodeHead(whole));
    this.ids.set(repo, packIds(rows.map(({ chunk }) => chunk.id)));
  }

  /** Publishes files, one chunk for ten lines. */
  publishFiles(repo: string, files: Readonly<Record<string, string>>, head: Partial<IndexHead> = {}): ChunkRow[] {
    const chunking = { chunkLines: 10, chunkStride: 10 };
    const chunks = Object.entries(files).flatMap(([path, text]) => chunkFile(path, text, chunking));
    const rows = chunks.map((chunk, i) => ({ chunk, vector: Float32Array.of(i, 0.5) }));
    this.publish(repo, rows, head);
    return rows;
  }

  /** The reads of rows so far, as what was read of which part. */
  get parts(): string[] {
    return this.asked
      .filter(({ ids }) => ids.length > 0)
      .map(({ what, read }) => (read.part ? `${what} ${read.part}` : what));
  }

  async head(repo: string) {
    await this.#ask({ repo, what: 'head', ids: [], read: {} });
    const bytes = this.heads.get(repo);
    return bytes && decodeHead(repo, bytes);
  }

  async snapshot(repo: string) {
    await this.#ask({ repo, what: 'snapshot', ids: [], read: {} });
    const bytes = this.heads.get(repo);
    if (!bytes) return undefined;
    const head = decodeHead(repo, bytes);
    return { head, ids: assertIds(repo, head, this.ids.get(repo)!) };
  }

  async leftOut(repo: string) {
    return this.leftOuts.get(repo);
  }

  async entries(repo: string, ids: readonly string[], read: RowRead = {}) {
    await this.#ask({ repo, what: 'entries', ids, read });
    const budget = new RowBudget(read);
    const rows = ids.map((id) => budget.take(this.entryBytes.get(`${repo} ${id}`)));
    return decodeRows(ids, rows, read, decodeEntry);
  }

  async contents(repo: string, _fingerprint: string, ids: readonly string[], read: RowRead = {}) {
    await this.#ask({ repo, what: 'contents', ids, read });
    const budget = new RowBudget(read);
    const rows = ids.map((id) => {
      const bytes = this.contentBytes.get(`${repo} ${id}`);
      return budget.take(bytes && partOf(bytes, read.part));
    });
    return decodeRows(ids, rows, read, (id, bytes) => decodeContent(id, bytes, read.part));
  }

  async repositories(tenant: string = DEFAULT_TENANT, which?: 'sides') {
    const keys = [...this.heads.keys()].filter((key) => isSideKey(key) === (which === 'sides'));
    return keys.filter((key) => tenantOf(key) === tenant).sort();
  }

  async lock(): Promise<IndexWriter> {
    throw new ServingError('index_locked', 'this store is not written to');
  }

  async close() {}

  async #ask(asked: Asked): Promise<void> {
    this.asked.push(asked);
    await this.delay(asked);
  }
}
