/**
 * Paces the refusals of each tenant. A request that is refused costs the gateway little, but a client that sends the
 * next one at once takes the whole event loop by that little: thousands of refusals a second, from a dozen connections,
 * made everybody's TTFT ten times as long. A connection works on one request at a time, so an answer that is held back
 * slows its client, and nobody else.
 */

/** Refusals that are sent without delay after a quiet time, in seconds of the rate. */
const BURST_SECONDS = 2;
/** Longest time that a refusal is held back, in ms: a client that waits longer for a refusal would time out. */
const MOST_MS = 1_000;

interface Debt {
  /** Refusals beyond what the rate has paid for. */
  refusals: number;
  atMs: number;
}

export class RefusalPace {
  /** By tenant: no more than there are in the file of keys. */
  readonly #debts = new Map<string, Debt>();
  readonly #perSecond: number;
  readonly #now: () => number;

  /**
   * @param perSecond refusals that a tenant gets without delay, over time.
   * @param now monotonic clock, in ms.
   */
  constructor(perSecond: number, now: () => number = () => performance.now()) {
    this.#perSecond = perSecond;
    this.#now = now;
  }

  /**
   * Counts one refusal of a tenant. No more than the rate of one second are held at once.
   * @returns time for which to hold it back, in ms, 0 mostly; undefined if as many are held as may be: then the client
   *   is answered at once, and must connect again.
   */
  refused(tenant: string): number | undefined {
    const [atMs, perMs] = [this.#now(), this.#perSecond / 1_000];
    const burst = BURST_SECONDS * this.#perSecond;
    const debt = this.#debts.get(tenant) ?? { refusals: 0, atMs };
    this.#debts.set(tenant, debt);
    debt.refusals = Math.max(0, debt.refusals - (atMs - debt.atMs) * perMs);
    debt.atMs = atMs;
    const delayMs = (debt.refusals + 1 - burst) / perMs;
    if (delayMs > MOST_MS) return undefined; // else the debt would grow without end, and outlast the flood
    debt.refusals++;
    return Math.max(0, delayMs);
  }
}
