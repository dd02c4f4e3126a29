/** Counts what one tenant asks for and gets, as its client sees it. */

/** A state of a meter; the difference of two says what happened in between. */
export interface Reading {
  readonly atMs: number;
  /** Tokens computed for the tenant: prompts whose first token came, and output. */
  readonly tokens: number;
  /** Time in which at least one sequence of the tenant waited for its first token. */
  readonly backlogMs: number;
  readonly sent: number;
  readonly refused: number;
}

/** A request on its way. */
export interface Metered {
  /** Tokens of one of its sequences have come. */
  received(choice: number, tokens: number): void;
  /** The answer has ended; calling it twice is harmless. */
  ended(): void;
}

export class Meter {
  readonly #now: () => number;
  #tokens = 0;
  #sent = 0;
  #waiting = 0;
  #backlogMs = 0;
  #changedMs: number;
  readonly #refused = new Map<string, number>();

  /** @param now monotonic clock, in ms. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#changedMs = now();
  }

  /** A request is sent. @param promptTokens count once, with its first token, however many sequences it has. */
  sent(sequences: number, promptTokens: number): Metered {
    this.#sent++;
    const begun = new Set<number>();
    let left = sequences;
    this.#wait(sequences);
    return {
      received: (choice, tokens) => {
        if (begun.size === 0) this.#tokens += promptTokens;
        this.#tokens += tokens;
        if (begun.has(choice) || left === 0) return;
        begun.add(choice);
        left--;
        this.#wait(-1);
      },
      ended: () => {
        this.#wait(-left);
        left = 0;
      },
    };
  }

  /** A request was refused or failed. */
  refused(code: string): void {
    this.#refused.set(code, (this.#refused.get(code) ?? 0) + 1);
  }

  /** Number of refusals by error code. */
  get refusals(): Readonly<Record<string, number>> {
    return Object.fromEntries(this.#refused);
  }

  read(): Reading {
    this.#wait(0);
    const refused = [...this.#refused.values()].reduce((sum, count) => sum + count, 0);
    return { atMs: this.#changedMs, tokens: this.#tokens, backlogMs: this.#backlogMs, sent: this.#sent, refused };
  }

  #wait(change: number): void {
    const nowMs = this.#now();
    if (this.#waiting > 0) this.#backlogMs += nowMs - this.#changedMs;
    this.#changedMs = nowMs;
    this.#waiting += change;
  }
}
