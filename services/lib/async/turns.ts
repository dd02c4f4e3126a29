/** Divides long work on the event loop into turns: `if (turns.over) await turns.next();` between two pieces of it. */
import { setImmediate } from 'node:timers/promises';

/** Other work on the event loop waits at most this long, in ms, plus the time of one piece. */
const TURN_MS = 5;

export class Turns {
  #endsMs = performance.now() + TURN_MS;

  /** Whether the turn is over. Ask this before `next`, because awaiting between a million pieces would be slow. */
  get over(): boolean {
    return performance.now() >= this.#endsMs;
  }

  /** Lets other work run, then starts a new turn. */
  async next(): Promise<void> {
    await setImmediate();
    this.#endsMs = performance.now() + TURN_MS;
  }
}
