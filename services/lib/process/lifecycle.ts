/**
 * The life of a service process: starting → ready → draining → stopped. SIGTERM and SIGINT drain; so does the death of
 * the parent that supervises it (its IPC channel closes), so that no process is left behind.
 */
import closeWithGrace from 'close-with-grace';
import { ServingError } from './errors.ts';
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
  readonly #stops: Stop[] = [];
  readonly #drain = new AbortController();
  #phase: Phase = 'starting';

  constructor(log: Logger, drainTimeoutMs: number) {
    this.#log = log;
    const grace = closeWithGrace({ delay: drainTimeoutMs, logger: false }, async ({ err, signal }) => {
      if (err) log.fatal({ err }, 'unexpected error: stopping');
      await this.#stop(signal ?? 'error');
    });
    if (process.connected) process.once('disconnect', () => void grace.close());
  }

  get phase(): Phase {
    return this.#phase;
  }

  /** Aborted, with a `draining` error as its reason, when no new work is to be taken. */
  get draining(): AbortSignal {
    return this.#drain.signal;
  }

  /** Runs when the process stops; the last one registered runs first. */
  onStop(name: string, run: () => Promise<void> | void): void {
    this.#stops.push({ name, run });
  }

  /** Work is accepted from now on; the parent, where there is one, learns the addresses. */
  ready(address: string, metricsAddress: string): void {
    this.#phase = 'ready';
    this.#log.info({ address, metricsAddress }, 'ready');
    const message: ReadyMessage = { ready: true, address, metricsAddress };
    if (process.connected) process.send?.(message);
  }

  async #stop(signal: string): Promise<void> {
    this.#phase = 'draining';
    this.#log.info({ signal }, 'draining');
    this.#drain.abort(new ServingError('draining', 'this process is shutting down'));
    for (const stop of this.#stops.reverse()) {
      try {
        await stop.run();
      } catch (err) {
        this.#log.error({ err, step: stop.name }, 'stop step failed');
      }
    }
    this.#phase = 'stopped';
    this.#log.info('stopped');
    if (process.connected) process.disconnect();
  }
}
