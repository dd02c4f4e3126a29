/**
 * Indexes are loaded before they are asked for: the first query of a repository would be over its budget before the index
 * is there. Repositories are looked for one tenant at a time, so that many of them cost the store no more than one.
 */
import { repeatUntilAborted } from '../../lib/async/repeat.ts';
import type { WarmableRetrieval } from '../../lib/rag/search/retrieval.ts';
import type { Store } from '../../lib/rag/store/store.ts';

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
export async function keepIndexesWarm(
  store: Pick<Store, 'repositories'>,
  retrieval: Pick<WarmableRetrieval, 'warm'>,
  tenants: readonly string[],
  closing: AbortSignal,
): Promise<void> {
  const warmedMs = new Map<string, number>();
  let look = 0;
  await repeatUntilAborted(closing, async () => {
    if (tenants.length === 0) return undefined;
    const startMs = performance.now();
    const repos = await store.repositories(tenants[look++ % tenants.length]!).catch(() => []);
    const tookMs = performance.now() - startMs;
    for (const [repo, atMs] of warmedMs) if (startMs - atMs > FORGET_AFTER_MS) warmedMs.delete(repo);
    for (const repo of repos.slice(0, MOST_REPOSITORIES)) {
      if (closing.aborted) return undefined;
      if (performance.now() - (warmedMs.get(repo) ?? -Infinity) < VERSION_EVERY_MS) continue;
      await retrieval.warm(repo).catch(() => {}); // whoever asks for it hears why
      warmedMs.set(repo, performance.now());
    }
    return Math.max(LOOK_EVERY_MS, LOOK_SHARE * tookMs);
  });
}
