/** A signal for "nothing has come for a while". */
export class Watchdog {
  readonly #controller = new AbortController();
  readonly #timeoutMs: number;
  readonly #reason: () => Error;
  #timer: NodeJS.Timeout | undefined;

  /**
   * @param timeoutMs how long nothing may come, in ms.
   * @param reason what the signal is then aborted with.
   */
  constructor(timeoutMs: number, reason: () => Error) {
    this.#timeoutMs = timeoutMs;
    this.#reason = reason;
  }

  /** Aborted when the time is up. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Begins to wait, anew where it waited already. */
  start(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#controller.abort(this.#reason()), this.#timeoutMs);
  }

  /** Waits no longer. Calling it twice is harmless. */
  stop(): void {
    clearTimeout(this.#timer);
  }
}
