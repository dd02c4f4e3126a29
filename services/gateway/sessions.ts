/**
 * What one request of a session leaves for the next one. Between two keystrokes most of a prompt is the same, and a worker
 * that has computed it need not compute it again, if the next prompt comes to the same worker and begins the same way: so
 * the chunks that stand first in it change only when they no longer fit.
 */
import { createHash } from 'node:crypto';
import type { Retrieved } from '../lib/rag/retrieval.ts';
import type { SoftTokens, TokenPrompt } from '../lib/request/sequence.ts';
import type { CompletionRequest } from './completion-request.ts';
import type { Demand } from './placement.ts';

/** The last prompt. */
interface Served {
  /** host:port of the prefill worker that has it. */
  readonly prefill: string;
  readonly ids: Int32Array;
  /** Of its soft tokens. */
  readonly soft: string;
}

interface Memory {
  served: Served | undefined;
  found: { readonly key: string; readonly retrieved: Retrieved } | undefined;
}

/**
 * Whose prompts are alike, one after the other: a session's, or for clients that know of none those for the same file.
 * Names of two tenants differ.
 */
export function sessionOf({ session, rag }: CompletionRequest, tenant: string): string | undefined {
  if (session !== undefined) return JSON.stringify([tenant, session]);
  return rag?.path === undefined ? undefined : JSON.stringify([tenant, rag.repo, rag.path]);
}

/** Editors open at once, at least; each costs its chunks, some tens of kB. */
const LIMIT = 1_000;
/** Share of newly found chunks that must stand in the prompt already for it to stay as it is. */
const FITS = 0.6;

export class Sessions {
  /** Least recently used first. */
  readonly #memories = new Map<string, Memory>();

  /** The worker to prefer, if there is one, and how much of the prompt it has, unless it gave that up since. */
  near(session: string, prompt: TokenPrompt): Pick<Demand, 'near' | 'nearTokens'> {
    const served = this.#memories.get(session)?.served;
    if (served === undefined) return {};
    // Soft tokens stand in front: after another one nothing is the same.
    const nearTokens = served.soft === digest(prompt.soft) ? commonLength(served.ids, prompt.ids) : 0;
    return { near: served.prefill, nearTokens };
  }

  servedBy(session: string, prefill: string, { ids, soft }: TokenPrompt): void {
    this.#of(session).served = { prefill, ids, soft: digest(soft) };
  }

  /**
   * The chunks of the last prompt, in their order, if they still fit what was found; else what was found.
   * @param key what must be the same besides: repository, mode, and so on.
   */
  settle(session: string, key: string, found: Retrieved): Retrieved {
    const memory = this.#of(session);
    const last = memory.found;
    if (last?.key === key && last.retrieved.indexVersion === found.indexVersion && fits(last.retrieved, found)) {
      return last.retrieved;
    }
    memory.found = { key, retrieved: found };
    return found;
  }

  #of(session: string): Memory {
    const memory = this.#memories.get(session) ?? { served: undefined, found: undefined };
    this.#memories.delete(session);
    this.#memories.set(session, memory);
    const oldest = this.#memories.size > LIMIT ? this.#memories.keys().next().value : undefined;
    if (oldest !== undefined) this.#memories.delete(oldest);
    return memory;
  }
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
