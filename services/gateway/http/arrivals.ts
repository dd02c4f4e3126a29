/**
 * Lets requests that come together begin in turns. A request takes about 1 ms of the event loop until it waits for
 * something or is refused, so 60 of one client that come at once held up everybody else for 60 ms. Here one request
 * begins in each round of the event loop, and clients take turns: whoever sends one request waits for one of each other
 * client's at the most.
 */
import type { IncomingMessage } from 'node:http';
import { keyOf } from './api-key.ts';

/** Keys whose tenants are remembered. Clients with others are told apart by their addresses until they ask again. */
const MOST_KEYS = 4_096;

export class Arrivals {
  /** What waits to begin, by client; the one whose turn is next comes first. */
  readonly #waiting = new Map<string, (() => void)[]>();
  /** Tenants of valid keys, those that were used least recently first. */
  readonly #tenants = new Map<string, string>();
  /** Whether a request has begun in this round of the event loop. */
  #hasBegun = false;

  /** A key is valid: its requests are those of one client, from whichever address they come. */
  knows(key: string, tenant: string): void {
    this.#tenants.delete(key);
    this.#tenants.set(key, tenant);
    for (const oldest of this.#tenants.keys()) {
      if (this.#tenants.size <= MOST_KEYS) break;
      this.#tenants.delete(oldest);
    }
  }

  /** @param begin called when it is the turn of the request: now, if none has begun in this round. */
  arrive(request: IncomingMessage, begin: () => void): void {
    if (!this.#hasBegun) {
      this.#awaitRound();
      begin();
      return;
    }
    const client = this.#clientOf(request);
    const waiting = this.#waiting.get(client);
    if (waiting) waiting.push(begin);
    else this.#waiting.set(client, [begin]);
  }

  /** All clients without a valid key at one address are one: keys that are made up give nobody more turns. */
  #clientOf(request: IncomingMessage): string {
    const key = keyOf(request);
    const tenant = key === undefined ? undefined : this.#tenants.get(key);
    return tenant === undefined ? `address ${request.socket.remoteAddress}` : `tenant ${tenant}`;
  }

  #awaitRound(): void {
    this.#hasBegun = true;
    setImmediate(() => {
      this.#hasBegun = false;
      const [next] = this.#waiting;
      if (next === undefined) return;
      const [client, waiting] = next;
      const begin = waiting.shift()!;
      this.#waiting.delete(client);
      if (waiting.length > 0) this.#waiting.set(client, waiting);
      this.#awaitRound();
      begin();
    });
  }
}
