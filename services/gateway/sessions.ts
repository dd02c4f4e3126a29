/**
 * What one request of a session leaves for the next one. Between two keystrokes most of a prompt is the same, and a worker
 * that has computed it need not compute it again, if the next prompt comes to the same worker and begins the same way: so
 * the chunks that stand first in it change only when they no longer fit.
 */
import type { Retrieved } from '../lib/rag/retrieval.ts';

interface Memory {
  /** host:port of the prefill worker that has the last prompt. */
  prefill: string | undefined;
  found: { readonly key: string; readonly retrieved: Retrieved } | undefined;
}

/** Editors open at once, at least; each costs its chunks, some tens of kB. */
const LIMIT = 1_000;
/** Share of newly found chunks that must stand in the prompt already for it to stay as it is. */
const FITS = 0.6;

export class Sessions {
  /** Least recently used first. */
  readonly #memories = new Map<string, Memory>();

  /** @returns the worker to prefer, if there is one. */
  lastPrefill(session: string): string | undefined {
    return this.#memories.get(session)?.prefill;
  }

  servedBy(session: string, prefill: string): void {
    this.#of(session).prefill = prefill;
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
    const memory = this.#memories.get(session) ?? { prefill: undefined, found: undefined };
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
