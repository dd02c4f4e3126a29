/**
 * The memory of sessions: one request of a session leaves something for the next one. Between two keystrokes most of a
 * prompt is the same, and a worker that has computed it need not compute it again, if the next prompt comes to the same
 * worker and begins the same way. So the chunks that stand first in the prompt change only when they no longer fit.
 */
import { createHash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import type { Retrieved } from '../../lib/rag/search/retrieval.ts';
import type { SoftTokens, TokenPrompt } from '../../lib/request/token-prompt.ts';
import type { CompletionRequest } from '../request.ts';
import type { PlacementRequest } from '../workers/worker-pool.ts';

/** The last prompt of a session. */
interface Served {
  /** host:port of the prefill worker that has it. */
  readonly prefill: string;
  readonly ids: Int32Array;
  /** Digest of its soft tokens. */
  readonly soft: string;
}

interface Memory {
  readonly served: Served | undefined;
  readonly found: { readonly key: string; readonly retrieved: Retrieved } | undefined;
}

/**
 * The key of a series of prompts that are alike, one after the other: those of a session or, for clients that name
 * none, those for the same file. Keys of two tenants differ, and of two salts: tenants never share KV.
 */
export function sessionOf({ session, rag, cacheSalt }: CompletionRequest, tenant: string): string | undefined {
  if (session !== undefined) return hashOf([tenant, cacheSalt, session]);
  return rag?.path === undefined ? undefined : hashOf([tenant, cacheSalt, rag.repo, rag.path]);
}

/**
 * A key of a fixed size: a path may have 4,096 characters, and in a Map all strings of more than 16,383 characters
 * collide, whatever they say.
 */
export const hashOf = (parts: readonly unknown[]) =>
  createHash('sha256').update(JSON.stringify(parts)).digest('base64');

/** Size of all memories: a thousand editors with ten chunks and 2,000 tokens each, at a hidden size of 1536. */
const LIMIT_BYTES = 96 << 20;
/** Size of a memory, and of each of its chunks, besides what they hold. */
const OVERHEAD_BYTES = 1024;
const CHUNK_OVERHEAD_BYTES = 512;
/** The prompt keeps its chunks while at least this share of the newly found ones stands in it already. */
const FITS = 0.6;

export class Sessions {
  readonly #memories: LRUCache<string, Memory>;

  /** @param limitBytes size of all memories; those that were used least recently are forgotten. */
  constructor(limitBytes = LIMIT_BYTES) {
    this.#memories = new LRUCache({ maxSize: limitBytes, sizeCalculation: bytesOf });
  }

  /** The worker to prefer, if there is one, and how much of the prompt it has, unless it has evicted that since. */
  affinity(session: string, prompt: TokenPrompt): Pick<PlacementRequest, 'affinityWorker' | 'affinityTokens'> {
    const served = this.#memories.get(session)?.served;
    if (served === undefined) return {};
    // Soft tokens stand in front: where one differs, nothing after it is the same.
    const affinityTokens = served.soft === digest(prompt.soft) ? commonLength(served.ids, prompt.ids) : 0;
    return { affinityWorker: served.prefill, affinityTokens };
  }

  servedBy(session: string, prefill: string, { ids, soft }: TokenPrompt): void {
    this.#keep(session, { served: { prefill, ids, soft: digest(soft) } });
  }

  /**
   * The chunks of the last prompt, in their order, if they still fit what was found; else what was found.
   * @param key what else must be the same: repository, mode, and so on.
   */
  settle(session: string, key: string, found: Retrieved): Retrieved {
    const last = this.#memories.get(session)?.found;
    if (last?.key === key && last.retrieved.indexVersion === found.indexVersion && fits(last.retrieved, found)) {
      return last.retrieved;
    }
    this.#keep(session, { found: { key, retrieved: found } });
    return found;
  }

  #keep(session: string, news: Partial<Memory>): void {
    const before = this.#memories.get(session);
    this.#memories.set(session, { served: before?.served, found: before?.found, ...news });
  }
}

function bytesOf({ served, found }: Memory): number {
  const chunks = found?.retrieved.chunks ?? [];
  const ofChunks = chunks.reduce(
    (sum, { path, text, vector }) => sum + CHUNK_OVERHEAD_BYTES + 2 * (path.length + text.length) + vector.byteLength,
    0,
  );
  return OVERHEAD_BYTES + (served?.ids.byteLength ?? 0) + ofChunks;
}

function fits(old: Retrieved, found: Retrieved): boolean {
  const known = new Set(old.chunks.map(({ id }) => id));
  const kept = found.chunks.filter(({ id }) => known.has(id)).length;
  return kept >= found.chunks.length * FITS && found.chunks.length > 0 === old.chunks.length > 0;
}

function commonLength(a: Int32Array, b: Int32Array): number {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length++;
  return length;
}

const digest = ({ positions, vectors }: SoftTokens) =>
  positions.length === 0 ? '' : createHash('sha256').update(positions).update(vectors).digest('base64');
