/**
 * Loads indexes before anyone asks for them: otherwise the first query of a repository would exceed its budget before
 * the index is loaded. It asks for the repositories of one tenant at a time, so that many tenants cost the store no
 * more than one.
 */
import { repeatUntilAborted } from '../../lib/async/repeat.ts';
import type { WarmableRetrieval } from '../../lib/rag/search/retrieval.ts';
import type { Store } from '../../lib/rag/store/store.ts';

/**
 * Shortest pause between two looks for new repositories, in ms: a look at each of ten tenants in
 * {@link VERSION_EVERY_MS}. With fewer tenants each is looked at that often, because looks are most of what an idle
 * gateway does. A pause is also at least {@link LOOK_SHARE} times as long as the look before it, so that a slow store
 * is asked less often.
 */
const LOOK_EVERY_MS = 100;
const LOOK_SHARE = 20;
/** Pause between two looks for a newer version of a repository, in ms. */
const VERSION_EVERY_MS = 1_000;
/** A repository that is no longer listed is forgotten after this time, in ms. */
const FORGET_AFTER_MS = 60_000;
/** Repositories of one tenant that are kept loaded. The others are loaded when a query asks for them. */
const MOST_REPOSITORIES = 64;

/** Loads the indexes that are there, then those that are published or get a new version, until `closing` is aborted. */
export async function keepIndexesWarm(
  store: Pick<Store, 'repositories'>,
  retrieval: Pick<WarmableRetrieval, 'warm'>,
  keys: { readonly tenants: readonly string[] },
  closing: AbortSignal,
): Promise<void> {
  const warmedMs = new Map<string, number>();
  let look = 0;
  await repeatUntilAborted(closing, async () => {
    const { tenants } = keys; // others when the file of keys has changed
    if (tenants.length === 0) return VERSION_EVERY_MS;
    const startMs = performance.now();
    const repos = await store.repositories(tenants[look++ % tenants.length]!).catch(() => []);
    const tookMs = performance.now() - startMs;
    for (const [repo, atMs] of warmedMs) if (startMs - atMs > FORGET_AFTER_MS) warmedMs.delete(repo);
    for (const repo of repos.slice(0, MOST_REPOSITORIES)) {
      if (closing.aborted) return undefined;
      if (performance.now() - (warmedMs.get(repo) ?? -Infinity) < VERSION_EVERY_MS) continue;
      await retrieval.warm(repo).catch(() => {}); // the next query of the repository reports the failure
      warmedMs.set(repo, performance.now());
    }
    return Math.max(LOOK_EVERY_MS, VERSION_EVERY_MS / tenants.length, LOOK_SHARE * tookMs);
  });
}
