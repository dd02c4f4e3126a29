/**
 * Keeps side indexes for the candidate's encoder up to date while the other bundle's index is served: repository by
 * repository, a bounded number of chunks at a time, by an indexer of the candidate's bundle. Uploads change the
 * repositories' own indexes as ever; a side index follows within seconds. Every gateway does this. The indexer lets one
 * at a time make an index; the others take the next repository, and find this one made when they look again.
 */
import { repeatUntilAborted } from '../../lib/async/repeat.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import { metrics } from '../../lib/process/metrics.ts';
import { nameOf, sideKey } from '../../lib/rag/store/repo-key.ts';
import { contextFingerprint } from '../../lib/rag/store/row.ts';
import type { Store } from '../../lib/rag/store/store.ts';
import type { IndexerClient } from '../../lib/rpc/contract.ts';

export interface SideIndexingParts {
  readonly store: Pick<Store, 'repositories' | 'head'>;
  readonly keys: { readonly tenants: readonly string[] };
  readonly indexer: Pick<IndexerClient, 'reembed'>;
  /** Fingerprint of the candidate's encoder and projector. */
  readonly fingerprint: string;
  readonly log: Pick<Logger, 'warn'>;
}

/** How far the side indexes are, as of the last look. */
export interface SideProgress {
  readonly repositories: number;
  /** Those whose side index is of the version that is served. */
  readonly current: number;
  /** Chunks that were encoded so far. */
  readonly embedded: number;
  /** Why a repository is behind that could not be brought up to date, as of the last look. */
  readonly problem?: string;
}

/** Pause between two looks at all repositories, in ms. */
const LOOK_EVERY_MS = 1_000;
/**
 * Longest time of one call, in ms: 512 chunks by a slow encoder on a busy machine. A call that rests begins no piece
 * after a minute; the last one, the publishing, and a rest of a minute at most before each of them come to that.
 */
const CALL_MS = 300_000;

export class SideIndexing {
  readonly #parts: SideIndexingParts;
  #progress: SideProgress = { repositories: 0, current: 0, embedded: 0 };

  constructor(parts: SideIndexingParts) {
    this.#parts = parts;
  }

  get progress(): SideProgress {
    return this.#progress;
  }

  /** Goes on until `closing` is aborted. It never rejects. */
  async run(closing: AbortSignal): Promise<void> {
    await repeatUntilAborted(closing, async () => {
      const problem = await this.#lookAtAll(closing).catch((error) => ServingError.from(error).message);
      if (!closing.aborted) this.#tell(problem);
      return LOOK_EVERY_MS;
    });
    for (const state of ['current', 'behind']) metrics.rolloutRepositories.remove({ state });
  }

  /** @returns why a repository is behind that could not be brought up to date. */
  async #lookAtAll(closing: AbortSignal): Promise<string | undefined> {
    const { store, keys } = this.#parts;
    let [repositories, current] = [0, 0];
    let problem: string | undefined;
    for (const tenant of keys.tenants) {
      for (const repo of await store.repositories(tenant)) {
        if (closing.aborted) return undefined;
        repositories++;
        try {
          if (await this.#bringUpToDate(tenant, repo, closing)) current++;
        } catch (error) {
          problem = `${repo}: ${ServingError.from(error).message}`;
        }
      }
    }
    this.#progress = { ...this.#progress, repositories, current };
    metrics.rolloutRepositories.set({ state: 'current' }, current);
    metrics.rolloutRepositories.set({ state: 'behind' }, repositories - current);
    return problem;
  }

  /** @returns whether the side index is of the version that is served: not yet where another gateway has it made. */
  async #bringUpToDate(tenant: string, repo: string, closing: AbortSignal): Promise<boolean> {
    if (await this.#isCurrent(repo)) return true;
    for (let left = 1; left > 0; ) {
      const signal = AbortSignal.any([closing, AbortSignal.timeout(CALL_MS)]);
      const answer = await this.#reembed(tenant, repo, signal);
      if (answer === undefined) return false;
      const embedded = this.#progress.embedded + answer.embedded;
      this.#progress = { ...this.#progress, embedded };
      left = answer.left;
    }
    return true;
  }

  /** @returns undefined while another process makes this side index. That is not a failure: its lock ends with it. */
  async #reembed(tenant: string, repo: string, signal: AbortSignal) {
    try {
      return await this.#parts.indexer.reembed({ tenant, repo: nameOf(repo) }, signal);
    } catch (error) {
      if (ServingError.from(error).code === 'index_locked') return undefined;
      throw error;
    }
  }

  async #isCurrent(repo: string): Promise<boolean> {
    const { store, fingerprint } = this.#parts;
    const own = await store.head(repo);
    if (own === undefined || contextFingerprint(own.fingerprint) === fingerprint) return true;
    return (await store.head(sideKey(repo, fingerprint)))?.of === own.version;
  }

  /** A problem that stays is in the log once. */
  #tell(problem: string | undefined): void {
    const isNew = problem !== undefined && problem !== this.#progress.problem;
    if (isNew) this.#parts.log.warn({ problem }, 'a side index is behind: it is tried again');
    this.#progress = { ...this.#progress, problem };
  }
}
