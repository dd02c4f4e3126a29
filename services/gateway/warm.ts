/**
 * Indexes are loaded before they are asked for: the first query of a repository would be over its budget before the index
 * is there. Repositories are looked for one tenant at a time, so that many of them cost the store no more than one.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { WarmableRetrieval } from '../lib/rag/retrieval.ts';
import type { Store } from '../lib/rag/store.ts';

/** Pause between two looks for new repositories, at least, and in times of what a look takes: a slow store is asked less. */
const LOOK_EVERY_MS = 100;
const LOOK_SHARE = 20;
/** Pause between two looks for a newer version of one. */
const VERSION_EVERY_MS = 1_000;
/** A repository that is no longer among them. */
const FORGET_AFTER_MS = 60_000;
/** Of one tenant. The others are loaded when they are asked for. */
const MOST_REPOSITORIES = 64;

/** Loads what is there, then what is published and what gets a new version, until `closing`. */
export async function keepWarm(
  store: Pick<Store, 'repositories'>,
  retrieval: Pick<WarmableRetrieval, 'warm'>,
  tenants: readonly string[],
  closing: AbortSignal,
): Promise<void> {
  const warmedMs = new Map<string, number>();
  for (let look = 0; tenants.length > 0 && !closing.aborted; look++) {
    const startMs = performance.now();
    const repos = await store.repositories(tenants[look % tenants.length]!).catch(() => []);
    const tookMs = performance.now() - startMs;
    for (const [repo, atMs] of warmedMs) if (startMs - atMs > FORGET_AFTER_MS) warmedMs.delete(repo);
    for (const repo of repos.slice(0, MOST_REPOSITORIES)) {
      if (closing.aborted) return;
      if (performance.now() - (warmedMs.get(repo) ?? -Infinity) < VERSION_EVERY_MS) continue;
      await retrieval.warm(repo).catch(() => {}); // whoever asks for it hears why
      warmedMs.set(repo, performance.now());
    }
    // Rejects only by the signal, which ends the loop.
    await sleep(Math.max(LOOK_EVERY_MS, LOOK_SHARE * tookMs), undefined, { signal: closing }).catch(() => {});
  }
}
