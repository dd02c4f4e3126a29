/** Ctrl-C and SIGTERM for a command that does one thing and ends. (A service has a Lifecycle instead.) */

/** The exit codes that shells report for a process that a signal ended. */
export const EXIT_CODES = { SIGINT: 130, SIGTERM: 143 } as const;

/** Somebody stopped the command; it did not fail. */
export class Interrupted extends Error {
  readonly exitCode: number;

  constructor(signal: keyof typeof EXIT_CODES) {
    super(`stopped by ${signal}`);
    this.exitCode = EXIT_CODES[signal];
  }
}

/**
 * A second signal later than this is a person who does not want to wait; an earlier one is npm passing on the first.
 */
export const IMPATIENCE_MS = 1_000;

/** What bounds the end of a command that keeps what it has done before it ends. */
interface StopLimit {
  /** Time from the first signal on after which the process ends all the same, in ms. */
  readonly ms: number;
  /** Told of it, before the process ends. */
  readonly onLate: () => void;
}

/**
 * A signal that is aborted, with {@link Interrupted} as its reason, when the command is to stop. A second Ctrl-C ends
 * the process at once.
 */
export function interruption(limit?: StopLimit): AbortSignal {
  const controller = new AbortController();
  let sinceMs = Infinity;
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => {
      if (performance.now() - sinceMs > IMPATIENCE_MS) process.exit(EXIT_CODES[signal]);
      if (limit && sinceMs === Infinity) {
        const end = () => {
          limit.onLate();
          process.exit(EXIT_CODES[signal]);
        };
        setTimeout(end, limit.ms).unref();
      }
      sinceMs = Math.min(sinceMs, performance.now());
      controller.abort(new Interrupted(signal));
    });
  }
  return controller.signal;
}
