/**
 * What one request of a session leaves for the next one. Between two keystrokes most of a prompt is the same, and a worker
 * that has computed it need not compute it again, if the next prompt comes to the same worker and begins the same way: so
 * the chunks that stand first in it change only when they no longer fit.
 */
import { createHash } from 'node:crypto';
import type { Retrieved } from '../../lib/rag/search/retrieval.ts';
import type { SoftTokens, TokenPrompt } from '../../lib/request/token-prompt.ts';
import type { CompletionRequest } from '../request.ts';
import type { PlacementRequest } from '../workers/worker-pool.ts';

/** The last prompt. */
interface Served {
  /** host:port of the prefill worker that has it. */
  readonly prefill: string;
  readonly ids: Int32Array;
  /** Of its soft tokens. */
  readonly soft: string;
}

interface Memory {
  bytes: number;
  served: Served | undefined;
  found: { readonly key: string; readonly retrieved: Retrieved } | undefined;
}

/**
 * Whose prompts are alike, one after the other: a session's, or for clients that know of none those for the same file.
 * Names of two tenants differ, and of two salts: what one computed is not the other's to reuse.
 */
export function sessionOf({ session, rag, cacheSalt }: CompletionRequest, tenant: string): string | undefined {
  if (session !== undefined) return hashOf([tenant, cacheSalt, session]);
  return rag?.path === undefined ? undefined : hashOf([tenant, cacheSalt, rag.repo, rag.path]);
}

/** Of one size: a path may have 4,096 characters, and strings of more than 16,383 collide in a Map, whatever they say. */
export const hashOf = (parts: readonly unknown[]) =>
  createHash('sha256').update(JSON.stringify(parts)).digest('base64');

/** Of all memories: a thousand editors with ten chunks and 2,000 tokens each, at a hidden size of 1536. */
const LIMIT_BYTES = 96 << 20;
/** Of one, and of each of its chunks, besides what they hold. */
const OVERHEAD_BYTES = 1024;
const CHUNK_OVERHEAD_BYTES = 512;
/** Share of newly found chunks that must stand in the prompt already for it to stay as it is. */
const FITS = 0.6;

export class Sessions {
  /** Least recently used first. */
  readonly #memories = new Map<string, Memory>();
  readonly #limitBytes: number;
  #bytes = 0;

  constructor(limitBytes = LIMIT_BYTES) {
    this.#limitBytes = limitBytes;
  }

  /** The worker to prefer, if there is one, and how much of the prompt it has, unless it gave that up since. */
  affinity(session: string, prompt: TokenPrompt): Pick<PlacementRequest, 'affinityWorker' | 'affinityTokens'> {
    const served = this.#memories.get(session)?.served;
    if (served === undefined) return {};
    // Soft tokens stand in front: after another one nothing is the same.
    const affinityTokens = served.soft === digest(prompt.soft) ? commonLength(served.ids, prompt.ids) : 0;
    return { affinityWorker: served.prefill, affinityTokens };
  }

  servedBy(session: string, prefill: string, { ids, soft }: TokenPrompt): void {
    this.#keep(session, { served: { prefill, ids, soft: digest(soft) } });
  }

  /**
   * The chunks of the last prompt, in their order, if they still fit what was found; else what was found.
   * @param key what must be the same besides: repository, mode, and so on.
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
    const memory: Memory = { served: undefined, found: undefined, ...this.#forget(session), ...news, bytes: 0 };
    memory.bytes = bytesOf(memory);
    this.#memories.set(session, memory);
    this.#bytes += memory.bytes;
    for (const oldest of this.#memories.keys()) {
      if (this.#bytes <= this.#limitBytes) return;
      this.#forget(oldest);
    }
  }

  #forget(session: string): Memory | undefined {
    const memory = this.#memories.get(session);
    if (memory) this.#bytes -= memory.bytes;
    this.#memories.delete(session);
    return memory;
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
