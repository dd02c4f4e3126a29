/**
 * The workers of one role, wherever they are found. Each is asked again and again what it is, so that one that comes up is
 * used, one that is gone is dropped, and one that hangs loses its work to others. Only workers of this gateway's own bundle
 * are used: the token ids mean nothing to others.
 */

import { CircuitBreaker } from '../../lib/async/circuit.ts';
import { startLateTimer } from '../../lib/async/late-timer.ts';
import { repeatUntilAborted } from '../../lib/async/repeat.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { WorkerDescription__Output } from '../../lib/rpc/gen/llavacode/v1/WorkerDescription.ts';

export interface Describable {
  describe(signal: AbortSignal): Promise<WorkerDescription__Output>;
  close(): void;
}

/** A worker that a completion counts on until `release`. */
export interface WorkerLease<C> {
  readonly address: string;
  readonly client: C;
  /** Aborted when the worker does not answer any more: its calls would never end. Until `release`. */
  readonly lost: AbortSignal;
  /** Its work has begun: by the worker's rate, ever less of it is left. */
  started(): void;
  /** Gives its load back, since the work is done, while the call goes on; twice is harmless. */
  releaseLoad(): void;
  /** Gives all back; twice is harmless. */
  release(): void;
  /** Leaves the worker alone for a while, if the error says that it is to blame. */
  failed(error: unknown): void;
  succeeded(): void;
}

interface Job {
  /** As a whole. */
  readonly load: number;
  beganMs?: number;
}

export interface Worker<C> {
  readonly address: string;
  readonly client: C;
  readonly circuit: CircuitBreaker;
  /** What it said of itself last; undefined while it cannot be used. */
  described: WorkerDescription__Output | undefined;
  /** Why it cannot be used. */
  problem: string;
  /** Calls of this gateway that have not ended: what aborts each. */
  readonly calls: Set<AbortController>;
  /** Those of them that have work left. */
  readonly jobs: Map<AbortController, Job>;
  /** What is left of them, by estimate. */
  readonly load: number;
  /** Work of other gateways, weighed when it was last asked. */
  otherGatewaysLoad: number;
  /** When it was last chosen, by count: equals take turns. */
  chosen: number;
  /** No longer among the addresses: its client is closed when its last call has ended. */
  removed: boolean;
}

export interface WorkerSetOptions<C> {
  readonly role: string;
  readonly connect: (address: string) => C;
  /** The load that a worker reports, in units of {@link WorkerLease}. */
  readonly reportedLoad: (description: WorkerDescription__Output) => number;
  /** Units of load that a worker gets done per second of a job; 0 where that is not known, or not to be reckoned with. */
  readonly rate: (description: WorkerDescription__Output) => number;
  /** Whether it takes more now. */
  readonly hasRoom: (worker: Worker<C>) => boolean;
  /** Of the bundle that this gateway tokenizes for. */
  readonly fingerprint: string;
  /** Deadline of one question; a worker that has been usable and misses it hangs. */
  readonly answerTimeoutMs: number;
  /** Pause between two questions. */
  readonly askEveryMs: number;
  /** An engine whose run is overdue by more has hung, in ms. */
  readonly stallTimeoutMs: number;
  /** Called when there may be room where there was none, or no worker where there was one. */
  readonly onChange: () => void;
  readonly log: Logger;
}

/** Errors after which a worker is left alone until it has answered again. */
const GONE: ReadonlySet<string> = new Set(['worker_lost', 'worker_stalled', 'draining', 'fingerprint_mismatch']);
/** Errors that another worker may mend and that yet are this one's, or of the way between it and the other half. */
const BLAMED: ReadonlySet<string> = new Set(['runtime_failed', 'kv_truncated', 'kv_digest_mismatch']);

/** Pause between two questions to a worker that cannot be used: it may be back any moment. */
const ASK_AGAIN_MS = 200;

export class WorkerSet<C extends Describable> {
  readonly #options: WorkerSetOptions<C>;
  #workers: Worker<C>[] = [];
  #choices = 0;
  #closing: AbortSignal | undefined;

  constructor(options: WorkerSetOptions<C>) {
    this.#options = options;
  }

  /** Where workers are from now on. What runs on one that is not named any more goes on. */
  setAddresses(addresses: readonly string[]): void {
    const wanted = new Set(addresses);
    const removed = this.#workers.filter(({ address }) => !wanted.has(address));
    this.#workers = this.#workers.filter(({ address }) => wanted.has(address));
    for (const worker of removed) this.#remove(worker);
    const known = new Set(this.#workers.map(({ address }) => address));
    for (const address of wanted) {
      if (known.has(address)) continue;
      const { rate, connect } = this.#options;
      const worker: Worker<C> = {
        ...{ address, client: connect(address), circuit: new CircuitBreaker() },
        ...{ calls: new Set(), jobs: new Map() },
        ...{ described: undefined, problem: 'has not answered yet', removed: false },
        ...{ otherGatewaysLoad: 0, chosen: 0 },
        get load() {
          return left(this.jobs.values(), this.described ? rate(this.described) : 0);
        },
      };
      this.#workers.push(worker);
      if (this.#closing) void this.#askForever(worker, this.#closing);
    }
  }

  /** Whether a worker of this role is there. */
  has(address: string): boolean {
    return this.#workers.some((worker) => worker.address === address);
  }

  get usable(): Worker<C>[] {
    const now = performance.now();
    return this.#workers.filter((worker) => worker.described !== undefined && worker.circuit.allows(now));
  }

  /** @throws ServingError no_worker */
  assertUsable(): Worker<C>[] {
    const usable = this.usable;
    if (usable.length > 0) return usable;
    const states = this.#workers.map(({ address, described, problem }) =>
      described ? `${address} fails one request after another` : `${address} ${problem}`,
    );
    throw new ServingError('no_worker', `no ${this.#options.role} worker: ${states.join('; ') || 'none is known'}`, {
      retryAfterSeconds: 1,
    });
  }

  /** Those that could take `positions` now, the least loaded first; those at equal load take turns. */
  ready(positions: number): Worker<C>[] {
    const { hasRoom } = this.#options;
    return this.usable
      .filter((worker) => (worker.described?.capacity ?? 0) >= positions && hasRoom(worker))
      .toSorted((a, b) => a.load + a.otherGatewaysLoad - b.load - b.otherGatewaysLoad || a.chosen - b.chosen);
  }

  lease(worker: Worker<C>, load: number): WorkerLease<C> {
    // One for each job: a signal that lives as long as the worker would remember all that ever listened to it.
    const lost = new AbortController();
    worker.calls.add(lost);
    const job: Job = { load };
    worker.jobs.set(lost, job);
    worker.chosen = ++this.#choices;
    worker.circuit.tried(performance.now());
    const rest = () => {
      if (worker.jobs.delete(lost)) this.#options.onChange();
    };
    return {
      address: worker.address,
      client: worker.client,
      lost: lost.signal,
      started: () => {
        job.beganMs = performance.now();
      },
      releaseLoad: rest,
      release: () => {
        rest();
        if (worker.calls.delete(lost) && worker.removed && worker.calls.size === 0) worker.client.close();
      },
      failed: (error) => {
        const failure = ServingError.from(error);
        if (GONE.has(failure.code)) this.#drop(worker, `failed a request (${failure.message})`);
        // What may be mended later is mostly nobody's fault.
        else if (failure.kind.http >= 500 && (!failure.kind.retryable || BLAMED.has(failure.code))) {
          worker.circuit.failed(performance.now());
        }
      },
      succeeded: () => worker.circuit.succeeded(),
    };
  }

  /** Asks every worker once. */
  async refresh(closing: AbortSignal): Promise<void> {
    await Promise.all(this.#workers.map((worker) => this.#ask(worker, closing)));
  }

  /** Asks every worker, and those that come later, again and again. */
  watch(closing: AbortSignal): void {
    this.#closing = closing;
    for (const worker of this.#workers) void this.#askForever(worker, closing);
  }

  close(): void {
    for (const worker of this.#workers) worker.client.close();
  }

  async #askForever(worker: Worker<C>, closing: AbortSignal): Promise<void> {
    await repeatUntilAborted(closing, async () => {
      if (worker.removed && worker.calls.size === 0) return undefined;
      await this.#ask(worker, closing);
      const { askEveryMs } = this.#options;
      return worker.described === undefined ? Math.min(askEveryMs, ASK_AGAIN_MS) : askEveryMs;
    });
  }

  async #ask(worker: Worker<C>, closing: AbortSignal): Promise<void> {
    const { fingerprint, answerTimeoutMs, stallTimeoutMs, reportedLoad, role, log } = this.#options;
    const deadline = new AbortController();
    const stopTimer = startLateTimer(answerTimeoutMs, () => deadline.abort());
    try {
      const answer = await worker.client.describe(deadline.signal);
      if (answer.fingerprint !== fingerprint) {
        this.#drop(worker, `serves bundle ${answer.fingerprint}, this gateway bundle ${fingerprint}`);
        return;
      }
      if (answer.overdueMs > stallTimeoutMs) return this.#lose(worker, `computes and does not come to an end`);
      if (worker.described === undefined) log.info({ address: worker.address, role }, 'worker is usable');
      worker.described = answer;
      worker.otherGatewaysLoad = Math.max(0, reportedLoad(answer) - left(worker.jobs.values(), 0)); // it reports jobs whole
      this.#changed();
    } catch (error) {
      if (closing.aborted) return;
      if (deadline.signal.aborted) this.#lose(worker, `has not answered within ${answerTimeoutMs} ms`);
      else this.#drop(worker, `does not answer (${error instanceof Error ? error.message : error})`);
    } finally {
      stopTimer();
    }
  }

  /** It neither goes on nor breaks its connections: nothing else would ever end its calls. */
  #lose(worker: Worker<C>, problem: string): void {
    this.#drop(worker, problem);
    const reason = new ServingError('worker_stalled', `${worker.address} ${problem}`);
    for (const call of worker.calls) call.abort(reason);
  }

  #drop(worker: Worker<C>, problem: string): void {
    if (worker.described !== undefined || worker.problem !== problem) {
      const { role, log } = this.#options;
      log.warn({ address: worker.address, role, problem }, 'worker is not usable');
    }
    worker.described = undefined;
    worker.problem = problem;
    this.#changed();
  }

  #changed(): void {
    metrics.workersUsable.set({ role: this.#options.role }, this.usable.length);
    this.#options.onChange();
  }

  #remove(worker: Worker<C>): void {
    worker.removed = true;
    this.#options.log.info({ address: worker.address, role: this.#options.role }, 'worker is no longer listed');
    if (worker.calls.size === 0) worker.client.close();
    this.#changed();
  }
}

/** What is left of jobs. One that should be done by now is not: it still weighs a little. */
function left(jobs: Iterable<Job>, rate: number): number {
  let sum = 0;
  for (const { load, beganMs = Infinity } of jobs) {
    const done = (Math.max(0, performance.now() - beganMs) / 1000) * rate;
    sum += Math.max(Math.min(load, 1), load - done);
  }
  return sum;
}
