/**
 * The workers of one role, wherever they are found. Each is asked again and again what it is, so that one that comes up
 * is used, one that is gone is dropped, and one that hangs loses its work to others. Only workers of this gateway's own
 * bundle are used: the token ids mean nothing to others.
 */
import { startLateTimer } from '../../lib/async/late-timer.ts';
import { repeatUntilAborted } from '../../lib/async/repeat.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import { metrics } from '../../lib/process/metrics.ts';
import { type Describable, Worker, type WorkerLease, type WorkerOptions } from './worker.ts';

export interface WorkerSetOptions<C extends Describable>
  extends Pick<WorkerOptions, 'role' | 'rate' | 'reportedLoad' | 'loadElsewhere'> {
  /** @param onBroken called when a connection that was there has broken. */
  readonly connect: (address: string, onBroken: () => void) => C;
  /** Whether it takes more now. */
  readonly hasRoom: (worker: Worker<C>) => boolean;
  /** SHA-256 (hex) of the bundle that this gateway tokenizes for. */
  readonly fingerprint: string;
  /** Deadline of one question, in ms; a worker that has been usable and misses it hangs. */
  readonly answerTimeoutMs: number;
  /** Pause between two questions, in ms. */
  readonly askEveryMs: number;
  /** An engine whose run is overdue by more has hung, in ms. */
  readonly stallTimeoutMs: number;
  /** Called when a job has ended: there may be room where there was none. */
  readonly onRoom: () => void;
  /** Called when a worker has answered, or cannot be used any more. */
  readonly onAnswer: () => void;
  /** Called when the connection to a worker has broken: whoever is there is to be asked at once. */
  readonly onBroken: () => void;
  /** Whether its figures are those of the gateway's metrics; those of a candidate's workers are told otherwise. */
  readonly isMeasured: boolean;
  readonly log: Logger;
}

/** Pause between two questions to a worker that cannot be used: it may be back at any moment. */
const ASK_AGAIN_MS = 200;
/**
 * A worker that nobody has given work is asked this much later than the pause between two questions says, in ms: most
 * of what an idle system computes is these questions. One that ends is noticed by its connection all the same, and one
 * that hangs as soon as ever, since its deadline is as much shorter.
 */
const REST_MS = 3_000;

export class WorkerSet<C extends Describable> {
  readonly #options: WorkerSetOptions<C>;
  /** The devices on which workers compute or have computed: one on which none does any more counts 0. */
  readonly #devices = new Set<string>();
  #workers: Worker<C>[] = [];
  /** Addresses that are not listed any more: their workers stay as long as they answer. */
  #lapsed: ReadonlySet<string> = new Set();
  #choices = 0;
  #closing: AbortSignal | undefined;

  constructor(options: WorkerSetOptions<C>) {
    this.#options = options;
  }

  /**
   * Takes the addresses of workers from now on. Work on a worker that is not named any more goes on.
   * @param lapsed addresses that are not listed any more, of workers that stay until they do not answer.
   */
  setAddresses(listed: readonly string[], lapsed: readonly string[] = []): void {
    const { role, log } = this.#options;
    const wanted = new Set([...listed, ...lapsed]);
    for (const worker of this.#workers) if (!wanted.has(worker.address)) this.#remove(worker);
    for (const address of lapsed) {
      if (this.#lapsed.has(address) || !this.has(address)) continue;
      log.warn({ address, role }, 'worker is no longer registered, and is used as long as it answers');
    }
    this.#lapsed = new Set(lapsed);
    for (const address of new Set(listed)) if (!this.has(address)) this.#add(address);
  }

  #remove(worker: Worker<C>): void {
    this.#workers = this.#workers.filter((each) => each !== worker);
    worker.delist();
  }

  #add(address: string): void {
    const { role, rate, reportedLoad, loadElsewhere, connect, onRoom, onBroken, log } = this.#options;
    const worker = new Worker(address, connect(address, onBroken), {
      role,
      rate,
      reportedLoad,
      loadElsewhere,
      onRoom,
      onAnswer: () => this.#changed(),
      log,
    });
    this.#workers.push(worker);
    if (this.#closing) void this.#askForever(worker, this.#closing);
  }

  /** Whether a worker of this role is there. */
  has(address: string): boolean {
    return this.#workers.some((worker) => worker.address === address);
  }

  /** All workers that are listed, whether or not they can be used. */
  get known(): readonly Worker<C>[] {
    return this.#workers;
  }

  get usable(): Worker<C>[] {
    return this.#workers.filter((worker) => worker.usable);
  }

  /** @throws ServingError no_worker */
  assertUsable(): void {
    if (this.usable.length > 0) return;
    const problems = this.#workers.map(({ problem }) => problem).join('; ');
    throw new ServingError('no_worker', `no ${this.#options.role} worker: ${problems || 'none is known'}`, {
      retryAfterSeconds: 1,
    });
  }

  /** Workers that could take `positions` now, the least loaded first; workers with equal load take turns. */
  ready(positions: number): Worker<C>[] {
    const { hasRoom } = this.#options;
    return this.usable
      .filter((worker) => worker.capacity >= positions && hasRoom(worker))
      .toSorted((a, b) => a.totalLoad - b.totalLoad || a.lastChosen - b.lastChosen);
  }

  lease(worker: Worker<C>, load: number): WorkerLease<C> {
    return worker.lease(load, ++this.#choices);
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
      if (worker.isOver) return undefined;
      const { askEveryMs, answerTimeoutMs } = this.#options;
      const mayRest = worker.isIdle && answerTimeoutMs >= 2 * REST_MS;
      if (mayRest && worker.silentMs < REST_MS) return askEveryMs;
      await this.#ask(worker, closing, mayRest ? answerTimeoutMs - REST_MS : answerTimeoutMs);
      return worker.description === undefined ? Math.min(askEveryMs, ASK_AGAIN_MS) : askEveryMs;
    });
  }

  /** @param answerTimeoutMs its deadline, in ms. */
  async #ask(worker: Worker<C>, closing: AbortSignal, answerTimeoutMs = this.#options.answerTimeoutMs): Promise<void> {
    const { fingerprint, stallTimeoutMs } = this.#options;
    const deadline = new AbortController();
    const stopTimer = startLateTimer(answerTimeoutMs, () => deadline.abort());
    try {
      const answer = await worker.client.describe(deadline.signal);
      if (answer.fingerprint !== fingerprint) {
        worker.markUnusable(`serves bundle ${answer.fingerprint}, this gateway bundle ${fingerprint}`);
        this.#removeLapsed(worker);
      } else if (answer.overdueMs > stallTimeoutMs) worker.markHung('computes and does not come to an end');
      else worker.answered(answer);
    } catch (error) {
      if (closing.aborted) return;
      if (deadline.signal.aborted) worker.markHung(`has not answered within ${answerTimeoutMs} ms`);
      else worker.markUnusable(`does not answer (${error instanceof Error ? error.message : error})`);
      this.#removeLapsed(worker);
    } finally {
      stopTimer();
    }
  }

  /** A worker that neither is listed nor answers is gone. One that drains does not answer either. */
  #removeLapsed(worker: Worker<C>): void {
    if (this.#lapsed.has(worker.address) && this.#workers.includes(worker)) this.#remove(worker);
  }

  #changed(): void {
    const { role, isMeasured } = this.#options;
    const { usable } = this;
    if (!isMeasured) {
      this.#options.onAnswer();
      return;
    }
    metrics.workersUsable.set({ role }, usable.length);
    for (const { description } of usable) if (description?.device) this.#devices.add(description.device);
    for (const device of this.#devices) {
      const computing = usable.filter(({ description }) => description?.device === device);
      metrics.workersByDevice.set({ role, device }, computing.length);
    }
    this.#options.onAnswer();
  }
}
