/**
 * The life of a service process: starting → ready → draining → stopped. SIGTERM and SIGINT drain; so does the death of
 * the parent that supervises it (its IPC channel closes), so that no process is left behind. Only the main of a process
 * makes one: it takes over signals, uncaught errors and the exit code (0 after a clean stop, else not).
 *
 * A second request to stop does not cut the drain short: one Ctrl+C reaches the whole process group, npm passes it on
 * again, and then the parent asks its children. SIGSEGV and its like stay untouched: a JS handler would hang there.
 */
import { setMaxListeners } from 'node:events';
import { ServingError } from './errors.ts';
import { EXIT_CODES, IMPATIENCE_MS } from './interrupt.ts';
import type { Logger } from './log.ts';

export type Phase = 'starting' | 'ready' | 'draining' | 'stopped';

/** What a supervised process tells its parent over IPC. */
export interface ReadyMessage {
  readonly ready: true;
  /** host:port that it serves on. */
  readonly address: string;
  /** host:port of its metrics, where that is another one. */
  readonly metricsAddress: string;
}

interface Stop {
  readonly name: string;
  readonly run: () => Promise<void> | void;
}

export class Lifecycle {
  readonly #log: Logger;
  readonly #drainTimeoutMs: number;
  readonly #stops: Stop[] = [];
  readonly #drain = new AbortController();
  #phase: Phase = 'starting';
  #drainingSinceMs = Infinity;
  /** The stop step at work, for the log. */
  #step = 'none';

  constructor(log: Logger, drainTimeoutMs: number) {
    this.#log = log;
    this.#drainTimeoutMs = drainTimeoutMs;
    setMaxListeners(0, this.#drain.signal); // one listener per running request
    process.on('SIGTERM', () => this.#stop('SIGTERM'));
    process.on('SIGINT', () => this.#interrupt());
    process.on('uncaughtException', (error) => this.#fail(error));
    process.on('unhandledRejection', (reason) => this.#fail(reason));
    if (process.connected) process.once('disconnect', () => this.#stop('parent gone'));
  }

  get phase(): Phase {
    return this.#phase;
  }

  /** Aborted, with a `draining` error as its reason, when no new work is to be taken. */
  get draining(): AbortSignal {
    return this.#drain.signal;
  }

  /** For a stop step that waits: a signal that leaves the steps after it a tenth of the drain's time. */
  get almostOver(): AbortSignal {
    const sinceMs = performance.now() - this.#drainingSinceMs;
    return AbortSignal.timeout(Math.max(0, Math.floor(this.#drainTimeoutMs * 0.9 - sinceMs)));
  }

  /** Runs when the process stops; the last one registered runs first. A step that throws does not keep others from it. */
  onStop(name: string, run: () => Promise<void> | void): void {
    this.#stops.push({ name, run });
  }

  /** Work is accepted from now on; the parent, where there is one, learns the addresses. Nothing once it drains. */
  ready(address: string, metricsAddress: string): void {
    if (this.#phase !== 'starting') return;
    this.#phase = 'ready';
    this.#log.info({ address, metricsAddress }, 'ready');
    const message: ReadyMessage = { ready: true, address, metricsAddress };
    // A parent that has just died shows as `disconnect`; the failed send says nothing more.
    if (process.connected) process.send?.(message, undefined, undefined, () => {});
  }

  #interrupt(): void {
    // Supervised, it is the parent that Ctrl+C is meant for: it knows the order in which services stop.
    if (process.connected) return;
    if (performance.now() - this.#drainingSinceMs > IMPATIENCE_MS) this.#cut('interrupted again', EXIT_CODES.SIGINT);
    this.#stop('SIGINT');
  }

  #fail(error: unknown): void {
    const err = ServingError.from(error);
    this.#log.fatal({ err, remedy: err.kind.remedy }, 'unexpected error: stopping');
    process.exitCode = 1;
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

  /** Always ends the process; steps registered meanwhile (a stop during start) run as well. */
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
    this.#log.error({ step: this.#step, drainTimeoutMs: this.#drainTimeoutMs }, `${reason}: stopping hard`);
    process.exit(exitCode);
  }
}
