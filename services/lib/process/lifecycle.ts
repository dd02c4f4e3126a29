/**
 * The life of a service process: starting → ready → draining → stopped. SIGTERM and SIGINT start the drain. So does the
 * death of the parent that supervises the process (its IPC channel closes), so that no process is left behind. Only the
 * main of a process makes a Lifecycle: it takes over signals, uncaught errors and the exit code (0 after a clean stop).
 *
 * A second request to stop does not cut the drain short, because one Ctrl-C comes several times: it reaches the whole
 * process group, npm passes it on again, and then the parent asks its children. SIGSEGV and similar signals keep their
 * default action, since a handler in JavaScript would hang.
 */
import { setMaxListeners } from 'node:events';
import { isatty } from 'node:tty';
import { exitCodeOf, ServingError } from './errors.ts';
import { EXIT_CODES, IMPATIENCE_MS } from './interrupt.ts';
import type { Logger } from './log.ts';
import type { ReadyMessage } from './supervised.ts';

export type Phase = 'starting' | 'ready' | 'draining' | 'stopped';

interface Stop {
  readonly name: string;
  readonly run: () => Promise<void> | void;
}

export class Lifecycle {
  readonly #log: Logger;
  readonly #drainTimeoutMs: number;
  readonly #stops: Stop[] = [];
  readonly #hangups: (() => void)[] = [];
  readonly #drain = new AbortController();
  #phase: Phase = 'starting';
  #drainingSinceMs = Infinity;
  /** The stop step that runs now, for the log. */
  #step = 'none';

  constructor(log: Logger, drainTimeoutMs: number) {
    this.#log = log;
    this.#drainTimeoutMs = drainTimeoutMs;
    setMaxListeners(0, this.#drain.signal); // one listener per running request
    process.on('SIGTERM', () => this.#stop('SIGTERM'));
    process.on('SIGINT', () => this.#interrupt());
    process.on('SIGHUP', () => this.#hangUp());
    process.on('uncaughtException', (error) => this.fail(error));
    process.on('unhandledRejection', (reason) => this.fail(reason));
    if (process.connected) process.once('disconnect', () => this.#stop('parent gone'));
    // Its parent died while it was loading, before anybody listened.
    else if (process.send) setImmediate(() => this.#stop('parent gone'));
  }

  get phase(): Phase {
    return this.#phase;
  }

  /** A signal that is aborted, with a `draining` error as its reason, when no new work is to be taken. */
  get draining(): AbortSignal {
    return this.#drain.signal;
  }

  /**
   * A signal for a stop step that waits. It is aborted when a tenth of the drain's time is left for the later steps.
   */
  get almostOver(): AbortSignal {
    const sinceMs = performance.now() - this.#drainingSinceMs;
    return AbortSignal.timeout(Math.max(0, Math.floor(this.#drainTimeoutMs * 0.9 - sinceMs)));
  }

  /**
   * Adds a step that runs when the process stops. The last one added runs first; one that throws does not stop
   * others.
   */
  onStop(name: string, run: () => Promise<void> | void): void {
    this.#stops.push({ name, run });
  }

  /** Adds what SIGHUP asks a service to do: read its files again. */
  onHangup(run: () => void): void {
    this.#hangups.push(run);
  }

  /** Says that work is accepted from now on, and tells a parent the addresses. Does nothing once the process drains. */
  ready(address: string, metricsAddress: string): void {
    if (this.#phase !== 'starting') return;
    this.#phase = 'ready';
    this.#log.info({ address, metricsAddress }, 'ready');
    const message: ReadyMessage = { ready: true, address, metricsAddress };
    // The death of the parent is seen as `disconnect`; a failed send adds nothing to that.
    if (process.connected) process.send?.(message, undefined, undefined, () => {});
  }

  #interrupt(): void {
    // In a supervised process Ctrl-C is meant for the parent, which knows the order in which services stop.
    if (process.connected) return;
    if (performance.now() - this.#drainingSinceMs > IMPATIENCE_MS) this.#cut('interrupted again', EXIT_CODES.SIGINT);
    this.#stop('SIGINT');
  }

  #hangUp(): void {
    if (isatty(0) || isatty(2)) {
      this.#stop('SIGHUP');
      return;
    }
    this.#log.info({ sets: this.#hangups.length }, 'SIGHUP: reading files of keys and certificates again');
    for (const run of this.#hangups) run();
  }

  /** Stops the process because of an error that it cannot go on with; the exit code is that of {@link exitCodeOf}. */
  fail(error: unknown): void {
    const err = ServingError.from(error);
    this.#log.fatal({ err, remedy: err.remedy }, 'this process cannot go on: stopping');
    process.exitCode = exitCodeOf(err);
    this.#stop('error');
  }

  #stop(reason: string): void {
    if (this.#phase === 'draining' || this.#phase === 'stopped') return;
    this.#phase = 'draining';
    this.#drainingSinceMs = performance.now();
    this.#log.info({ reason }, 'draining');
    setTimeout(() => this.#cut('drain timed out', 1), this.#drainTimeoutMs);
    this.#drain.abort(new ServingError('draining', 'this process is shutting down'));
    void this.#runStops();
  }

  /** Runs the stop steps and ends the process. Steps that are added meanwhile (a stop during start) run as well. */
  async #runStops(): Promise<void> {
    for (let stop = this.#stops.pop(); stop !== undefined; stop = this.#stops.pop()) {
      this.#step = stop.name;
      try {
        await stop.run();
      } catch (err) {
        process.exitCode = 1;
        this.#log.error({ err, step: stop.name }, 'stop step failed');
      }
    }
    this.#phase = 'stopped';
    this.#log.info('stopped');
    process.exit();
  }

  #cut(reason: string, exitCode: number): never {
    this.#log.error({ step: this.#step, drainTimeoutMs: this.#drainTimeoutMs }, `${reason}: exiting at once`);
    process.exit(exitCode);
  }
}
