/**
 * A circuit breaker before a store, for processes that serve completions. A store that fails or is slow several times
 * in a row is left alone: calls fail at once, so that not every completion pays its retrieval budget for nothing. The
 * store is tried again in the background, so that no completion pays for the trial either.
 *
 * The store is judged by reads of heads alone, except those of lists, of which one tenant may ask for thousands. Every
 * retrieval begins with one, all of them are small, and the server that has a repository's head has its rows too. A
 * read of rows says as much about the rows as about the store: one tenant's large rows must not shut out the others.
 */
import { CircuitBreaker } from '../../async/circuit.ts';
import { startLateTimer } from '../../async/late-timer.ts';
import { ServingError } from '../../process/errors.ts';
import { metrics } from '../../process/metrics.ts';
import type { IndexHead, Store } from './store.ts';

interface BreakerOptions {
  /** Time that a whole retrieval may take, in ms. A head that takes more than its share counts as a failure. */
  readonly budgetMs: number;
  /** Failures in a row that open the circuit. */
  readonly failures?: number;
  /** Time between two trials, in ms. A trial is one small read, which costs an overloaded store next to nothing. */
  readonly trialMs?: number;
}

/** A retrieval makes two reads in a row, the head and then the rows, and searches in between. */
const PARTS = 3;

/** Only reads are refused: writers have deadlines of their own and must hear of every failure. */
export function withBreaker(store: Store, options: BreakerOptions): Store {
  const watched = new WatchedStore(store, options);
  const unlessOpen = async <T>(read: () => Promise<T>): Promise<T> => {
    watched.assertUsable();
    return read();
  };
  return {
    address: store.address,
    head: (repo, read) => (read?.isListed ? unlessOpen(() => store.head(repo, read)) : watched.head(repo)),
    snapshot: (repo) => unlessOpen(() => store.snapshot(repo)),
    entries: (repo, ids, read) => unlessOpen(() => store.entries(repo, ids, read)),
    contents: (repo, fingerprint, ids, read) => unlessOpen(() => store.contents(repo, fingerprint, ids, read)),
    leftOut: (repo) => store.leftOut(repo),
    repositories: (tenant, which) => unlessOpen(() => store.repositories(tenant, which)),
    lock: (repo, ttlMs) => store.lock(repo, ttlMs),
    close: () => {
      watched.close();
      return store.close();
    },
  };
}

class WatchedStore {
  readonly #store: Store;
  readonly #failures: number;
  readonly #trialMs: number;
  readonly #slowMs: number;
  readonly #circuit: CircuitBreaker;
  /** The next trial, while the circuit is open. */
  #trial: NodeJS.Timeout | undefined;
  /**
   * The repository whose head was asked for last, whether that was refused or not: a trial reads this one. The nodes of
   * a cluster fail one by one, and a fixed name could lie on a dead node while all names in use lie on others.
   */
  #asked = '';
  #closed = false;

  constructor(store: Store, { budgetMs, failures = 5, trialMs = 500 }: BreakerOptions) {
    this.#store = store;
    this.#failures = failures;
    this.#trialMs = trialMs;
    this.#slowMs = budgetMs / PARTS;
    this.#circuit = new CircuitBreaker({ failures });
  }

  async head(repo: string): Promise<IndexHead | undefined> {
    this.#asked = repo;
    this.assertUsable();
    const beganMs = performance.now();
    const { answer, verdict } = this.#watched(repo);
    verdict.then((healthy) => this.#count(healthy, beganMs));
    return answer;
  }

  /** @throws ServingError store_unavailable while the circuit is open. */
  assertUsable(): void {
    if (!this.#circuit.open) return;
    throw new ServingError(
      'store_unavailable',
      `${this.#store.address} failed or was slow ${this.#failures} times in a row and is left alone for a while`,
    );
  }

  /** Once the circuit is open, only a trial closes it: an answer that was long on its way proves nothing. */
  #count(healthy: boolean, beganMs: number): void {
    if (this.#circuit.open || this.#closed) return;
    if (healthy) this.#circuit.succeeded();
    else this.#circuit.failed(performance.now(), beganMs);
    if (this.#circuit.open) this.#tryLater();
  }

  /** `verdict` settles with the answer, or as soon as the call is too slow. */
  #watched(repo: string): { answer: Promise<IndexHead | undefined>; verdict: Promise<boolean> } {
    const answer = this.#store.head(repo);
    const verdict = new Promise<boolean>((resolve) => {
      const stopTimer = startLateTimer(this.#slowMs, () => resolve(false));
      answer
        .then(
          () => resolve(true),
          // A missing or damaged index is not a failure of the store.
          (error) => resolve(!(error instanceof ServingError && error.code === 'store_unavailable')),
        )
        .finally(stopTimer);
    });
    return { answer, verdict };
  }

  /** The timer does not keep the process alive. */
  #tryLater(): void {
    metrics.storeCircuitOpen.set(1);
    this.#trial = setTimeout(() => void this.#try(), this.#trialMs).unref();
  }

  async #try(): Promise<void> {
    const healthy = await this.#watched(this.#asked).verdict;
    if (this.#closed) return;
    if (!healthy) {
      this.#tryLater();
      return;
    }
    metrics.storeCircuitOpen.set(0);
    this.#circuit.succeeded();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#trial);
    metrics.storeCircuitOpen.set(0);
  }
}
