/**
 * Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996): who is next among parties that want the same thing. Each
 * has a counter of what it was served, in cost divided by its weight, and the one with the lowest is next. A party that
 * was idle starts again at the virtual time, so that it neither saves up credit nor has to wait until others have
 * caught up. Pure: no clock, and no queue, which is each caller's own.
 */

export interface Party {
  readonly name: string;
  /** Cost served so far, divided by the party's weight. Only {@link FairShares} changes it. */
  served: number;
}

export class FairShares<P extends Party> {
  readonly #make: (name: string, served: number) => P;
  /** In the order in which they came, which decides between parties that were served the same. */
  readonly #parties = new Map<string, P>();
  /** The counter of the party served last, before that service. */
  #virtualTime = 0;

  /** @param make a party that is new, and its counter. */
  constructor(make: (name: string, served: number) => P) {
    this.#make = make;
  }

  get virtualTime(): number {
    return this.#virtualTime;
  }

  get all(): Iterable<P> {
    return this.#parties.values();
  }

  find(name: string): P | undefined {
    return this.#parties.get(name);
  }

  /** The party of this name, which is made if there is none. */
  of(name: string): P {
    const known = this.#parties.get(name);
    if (known) return known;
    const fresh = this.#make(name, this.#virtualTime);
    this.#parties.set(name, fresh);
    return fresh;
  }

  /** What a party was served, for its weight, as it counts if it asks now. */
  servedOf(name: string): number {
    return Math.max(this.#parties.get(name)?.served ?? 0, this.#virtualTime);
  }

  /** A party that was idle has something to ask for. */
  wakes(party: P): void {
    party.served = Math.max(party.served, this.#virtualTime);
  }

  /** The party that is next among those that `wants` holds for; on ties the one that came first. */
  next(wants: (party: P) => boolean): P | undefined {
    let least: P | undefined;
    for (const party of this.#parties.values()) {
      if ((least === undefined || party.served < least.served) && wants(party)) least = party;
    }
    return least;
  }

  /**
   * A party is served.
   * @param cost divided by its weight.
   * @param turn counter of the party that was first in line, where another one went before it: newcomers do not wait
   *   until that one has caught up.
   */
  serve(party: P, cost: number, turn = party.served): void {
    // What costs nothing was served before: the time of that service has passed already.
    if (cost > 0) this.#virtualTime = Math.max(this.#virtualTime, turn);
    party.served += cost;
  }

  /** A party has been served elsewhere, up to this counter. */
  raise(party: P, served: number): void {
    party.served = Math.max(party.served, served);
  }

  /** A party was served less than it was thought to be, by this cost divided by its weight. */
  giveBack(party: P, cost: number): void {
    party.served -= cost;
  }

  /** While nobody waits nobody falls behind: time goes on for all. */
  passTo(served: number): void {
    this.#virtualTime = Math.max(this.#virtualTime, served);
  }

  /** Drops parties that are idle, if a new one would equal them. */
  forget(isIdle: (party: P) => boolean): void {
    for (const party of this.#parties.values()) {
      if (party.served <= this.#virtualTime && isIdle(party)) this.#parties.delete(party.name);
    }
  }
}
