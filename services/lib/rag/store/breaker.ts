/**
 * A circuit breaker before a store, for those who serve completions. A store that fails or is slow several times in a row
 * is left alone: calls fail at once instead of costing every completion its retrieval budget. It is tried again in the
 * background, so that no completion pays for the trial.
 */
import { startLateTimer } from '../../async/late-timer.ts';
import { ServingError } from '../../process/errors.ts';
import { metrics } from '../../process/metrics.ts';
import type { Store } from './store.ts';

export interface BreakerOptions {
  /** What a whole retrieval may take, in ms. A small read that takes more than its part is a failure, though it may succeed. */
  readonly budgetMs: number;
  /** Failures in a row that open the circuit. */
  readonly failures?: number;
  /** Time between trials, in ms: one small read each, which costs a store that is overloaded nothing. */
  readonly trialMs?: number;
}

/** Ids of one small read. Larger ones load a whole index and may take their time. */
const SMALL = 128;
/** A retrieval reads twice in a row, the head and then the rows, and searches between. */
const PARTS = 3;

/** Only reads are watched: writers have their own deadlines and should hear of every failure. */
export function withBreaker(store: Store, options: BreakerOptions): Store {
  const circuit = new Circuit(store, options);
  return {
    address: store.address,
    head: (repo) => circuit.run(repo, () => store.head(repo), true),
    snapshot: (repo) => circuit.run(repo, () => store.snapshot(repo), false),
    entries: (repo, ids) => circuit.run(repo, () => store.entries(repo, ids), ids.length <= SMALL),
    contents: (repo, fingerprint, ids) =>
      circuit.run(repo, () => store.contents(repo, fingerprint, ids), ids.length <= SMALL),
    repositories: (tenant) => circuit.run(undefined, () => store.repositories(tenant), false),
    lock: (repo, ttlMs) => store.lock(repo, ttlMs),
    close: () => {
      circuit.close();
      return store.close();
    },
  };
}

class Circuit {
  readonly #store: Store;
  readonly #options: Required<BreakerOptions>;
  readonly #slowMs: number;
  /** In a row, one after the other: however many calls one hiccup catches, it is one failure. */
  #failures = 0;
  /** While it is open: the next trial. */
  #trial: NodeJS.Timeout | undefined;
  /**
   * The repository asked for last, refused or not: what a trial reads. The nodes of a cluster fail one by one, and a name
   * that is always the same may lie on a dead one while all that is asked for lies on others.
   */
  #asked = '';
  #closed = false;

  constructor(store: Store, options: BreakerOptions) {
    this.#store = store;
    this.#options = { failures: 5, trialMs: 500, ...options };
    this.#slowMs = options.budgetMs / PARTS;
  }

  /** @param repo undefined where the call is not about one. @param small whether slowness counts. */
  async run<T>(repo: string | undefined, read: () => Promise<T>, small: boolean): Promise<T> {
    this.#asked = repo ?? this.#asked;
    if (this.#trial) {
      throw new ServingError(
        'store_unavailable',
        `${this.#store.address} failed or was slow ${this.#options.failures} times in a row: left alone for a while`,
      );
    }
    const failuresBefore = this.#failures;
    const outcome = this.#watched(read, small);
    outcome.verdict.then((healthy) => {
      if (healthy) this.#failures = 0;
      else if (this.#failures === failuresBefore) this.#fail();
    });
    return outcome.answer;
  }

  /** `verdict` comes with the answer, or when the call has become slow, whichever is first. */
  #watched<T>(read: () => Promise<T>, small: boolean): { answer: Promise<T>; verdict: Promise<boolean> } {
    const answer = read();
    const verdict = new Promise<boolean>((resolve) => {
      const stopTimer = small ? startLateTimer(this.#slowMs, () => resolve(false)) : () => {};
      answer
        .then(
          () => resolve(true),
          // Only what says something of the store: a missing or damaged index does not.
          (error) => resolve(!(error instanceof ServingError && error.code === 'store_unavailable')),
        )
        .finally(stopTimer);
    });
    return { answer, verdict };
  }

  #fail(): void {
    this.#failures++;
    if (this.#failures >= this.#options.failures && !this.#trial && !this.#closed) this.#open();
  }

  #open(): void {
    metrics.storeCircuitOpen.set(1);
    this.#trial = setTimeout(() => void this.#try(), this.#options.trialMs);
    this.#trial.unref();
  }

  async #try(): Promise<void> {
    if (await this.#watched(() => this.#store.head(this.#asked), true).verdict) {
      metrics.storeCircuitOpen.set(0);
      this.#trial = undefined;
      this.#failures = 0;
      return;
    }
    if (!this.#closed) this.#open();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#trial);
    metrics.storeCircuitOpen.set(0);
  }
}
