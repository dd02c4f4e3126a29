/** Long work on the event loop, in turns: `if (turns.over) await turns.next();` between two pieces of it. */
import { setImmediate } from 'node:timers/promises';

/** Others wait no longer, but for the piece under way. */
const TURN_MS = 5;

export class Turns {
  #endsMs = performance.now() + TURN_MS;

  /** Whether others are due. (Asked first, since an await for each of a million pieces takes its time.) */
  get over(): boolean {
    return performance.now() >= this.#endsMs;
  }

  /** Lets others have their turn. */
  async next(): Promise<void> {
    await setImmediate();
    this.#endsMs = performance.now() + TURN_MS;
  }
}
