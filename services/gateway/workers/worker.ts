/**
 * One worker, as this gateway knows it: what it said of itself last, what this gateway has given it to do, and whether
 * it can be used. Only the worker set changes it; the others read it, and hold leases.
 */
import { CircuitBreaker } from '../../lib/async/circuit.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import type { WorkerDescription__Output } from '../../lib/rpc/gen/llavacode/v1/WorkerDescription.ts';
import { isBlamed, isGone } from './blame.ts';

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
  /** The work has begun: by the worker's measured rate, less and less of it is left. */
  started(): void;
  /** Gives the load back, since the work is done, while the call goes on; calling it twice is harmless. */
  releaseLoad(): void;
  /** Gives load and call back; calling it twice is harmless. */
  release(): void;
  /** Stops using the worker for a while, if the error is its fault (see blame.ts). */
  reportFailure(error: unknown): void;
  reportSuccess(): void;
}

interface Job {
  /** Load of the whole job. */
  readonly load: number;
  /** undefined while it waits in the worker. */
  beganMs?: number;
}

export interface WorkerOptions {
  readonly role: string;
  /** Load finished per second; 0 if unknown or not used. */
  readonly rate: (description: WorkerDescription__Output) => number;
  /** The load that a worker reports, in tokens (prefill) or sequences (decode). */
  readonly reportedLoad: (description: WorkerDescription__Output) => number;
  /** Load that other gateways say they have given it, at least; 0 where none says so. */
  readonly loadElsewhere: (address: string) => number;
  /** Called when a job has ended: there may be room where there was none. */
  readonly onRoom: () => void;
  /** Called when it has answered, or cannot be used any more. */
  readonly onAnswer: () => void;
  readonly log: Logger;
}

export class Worker<C extends Describable> {
  readonly address: string;
  readonly client: C;
  readonly #options: WorkerOptions;
  readonly #circuit = new CircuitBreaker();
  #description: WorkerDescription__Output | undefined;
  /** When it answered last, on the monotonic clock. */
  #answeredMs = -Infinity;
  /** The reason why it cannot be used. */
  #problem = 'has not answered yet';
  /** Calls of this gateway that have not ended: what aborts each. */
  readonly #calls = new Set<AbortController>();
  /** The jobs of those calls that have work left. */
  readonly #jobs = new Map<AbortController, Job>();
  #otherGatewaysLoad = 0;
  #lastChosen = 0;
  #delisted = false;

  constructor(address: string, client: C, options: WorkerOptions) {
    this.address = address;
    this.client = client;
    this.#options = options;
  }

  /** Its last description of itself; undefined while it cannot be used. */
  get description(): WorkerDescription__Output | undefined {
    return this.#description;
  }

  /** Positions that one of its slots holds; 0 while it cannot be used. */
  get capacity(): number {
    return this.#description?.capacity ?? 0;
  }

  /** Whether work may be given to it now. */
  get usable(): boolean {
    return this.#description !== undefined && this.#circuit.allows(performance.now());
  }

  /** The reason why it cannot be used, for messages: "ADDRESS does not answer". */
  get problem(): string {
    return `${this.address} ${this.#description === undefined ? this.#problem : 'fails one request after another'}`;
  }

  /** Estimated load that is left of this gateway's jobs. */
  get load(): number {
    return loadLeft(this.#jobs.values(), this.#description ? this.#options.rate(this.#description) : 0);
  }

  /** {@link load}, and the work of other gateways as the worker or they said last, whichever is more. */
  get totalLoad(): number {
    return this.load + Math.max(this.#otherGatewaysLoad, this.#options.loadElsewhere(this.address));
  }

  /** Jobs of this gateway that have work left. */
  get jobs(): number {
    return this.#jobs.size;
  }

  /** Whether nobody has given it work, as far as this gateway knows. */
  get isIdle(): boolean {
    return (
      this.#calls.size === 0 && this.#description !== undefined && this.#options.reportedLoad(this.#description) === 0
    );
  }

  /** Time since it answered last, in ms. */
  get silentMs(): number {
    return performance.now() - this.#answeredMs;
  }

  /** Number of its last choice among all choices of the set: workers with equal load take turns. */
  get lastChosen(): number {
    return this.#lastChosen;
  }

  /** It is no longer listed, and its last call has ended. */
  get isOver(): boolean {
    return this.#delisted && this.#calls.size === 0;
  }

  /** @param chosen number of this choice among all: see {@link lastChosen}. */
  lease(load: number, chosen: number): WorkerLease<C> {
    // Each job has its own signal: one shared for the worker's life would keep every listener in memory.
    const lost = new AbortController();
    const job: Job = { load };
    this.#calls.add(lost);
    this.#jobs.set(lost, job);
    this.#lastChosen = chosen;
    this.#circuit.tried(performance.now());
    const releaseLoad = () => {
      if (this.#jobs.delete(lost)) this.#options.onRoom();
    };
    return {
      address: this.address,
      client: this.client,
      lost: lost.signal,
      started: () => {
        job.beganMs = performance.now();
      },
      releaseLoad,
      release: () => {
        releaseLoad();
        if (this.#calls.delete(lost) && this.isOver) this.client.close();
      },
      reportFailure: (error) => this.#reportFailure(ServingError.from(error)),
      reportSuccess: () => this.#circuit.succeeded(),
    };
  }

  /** It has said what it is: from now on it can be used. */
  answered(description: WorkerDescription__Output): void {
    const { role, reportedLoad, onAnswer, log } = this.#options;
    if (this.#description === undefined) log.info({ address: this.address, role }, 'worker is usable');
    this.#description = description;
    this.#answeredMs = performance.now();
    // The worker reports our jobs too, and counts each as a whole.
    this.#otherGatewaysLoad = Math.max(0, reportedLoad(description) - loadLeft(this.#jobs.values(), 0));
    onAnswer();
  }

  /** It cannot be used until it answers again. Calls that run go on. */
  markUnusable(problem: string): void {
    const { role, onAnswer, log } = this.#options;
    if (this.#description !== undefined || this.#problem !== problem) {
      log.warn({ address: this.address, role, problem }, 'worker is not usable');
    }
    this.#description = undefined;
    this.#problem = problem;
    onAnswer();
  }

  /**
   * Marks a worker unusable that neither goes on nor breaks its connections, and ends its calls: nothing else would
   * ever end them.
   */
  markHung(problem: string): void {
    this.markUnusable(problem);
    const reason = new ServingError('worker_stalled', `${this.address} ${problem}`);
    for (const call of this.#calls) call.abort(reason);
  }

  /** It is not among the addresses any more. Its client is closed when its last call has ended. */
  delist(): void {
    const { role, onAnswer, log } = this.#options;
    this.#delisted = true;
    log.info({ address: this.address, role }, 'worker is no longer listed');
    if (this.isOver) this.client.close();
    onAnswer();
  }

  #reportFailure(failure: ServingError): void {
    if (isGone(failure)) this.markUnusable(`failed a request (${failure.message})`);
    else if (isBlamed(failure)) this.#circuit.failed(performance.now());
  }
}

/**
 * Load that is left of jobs, by the rate at which they are done. A job that overruns its estimate still counts as at
 * least 1.
 */
function loadLeft(jobs: Iterable<Job>, rate: number): number {
  let sum = 0;
  for (const { load, beganMs = Infinity } of jobs) {
    const done = (Math.max(0, performance.now() - beganMs) / 1000) * rate;
    sum += Math.max(Math.min(load, 1), load - done);
  }
  return sum;
}
