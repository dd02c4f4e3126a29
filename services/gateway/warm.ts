/**
 * Indexes are loaded before they are asked for: the first query of a repository would be over its budget before the index
 * is there. Repositories are looked for one tenant at a time, so that many of them cost the store no more than one.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { WarmableRetrieval } from '../lib/rag/retrieval.ts';
import type { Store } from '../lib/rag/store.ts';

/** Pause between two looks. */
const LOOK_EVERY_MS = 500;
/** Of one tenant; each costs a small read per look. The others are loaded when they are asked for. */
const MOST_REPOSITORIES = 64;

/** Loads what is there, then what is published and what gets a new version, until `closing`. */
export async function keepWarm(
  store: Pick<Store, 'repositories'>,
  retrieval: Pick<WarmableRetrieval, 'warm'>,
  tenants: readonly string[],
  closing: AbortSignal,
): Promise<void> {
  for (let look = 0; tenants.length > 0 && !closing.aborted; look++) {
    const repos = await store.repositories(tenants[look % tenants.length]!).catch(() => []);
    for (const repo of repos.slice(0, MOST_REPOSITORIES)) {
      if (closing.aborted) return;
      await retrieval.warm(repo).catch(() => {}); // whoever asks for it hears why
    }
    // Rejects only by the signal, which ends the loop.
    await sleep(LOOK_EVERY_MS, undefined, { signal: closing }).catch(() => {});
  }
}
