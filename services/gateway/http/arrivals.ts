/**
 * Lets requests that come together begin in turns. A request takes about 1 ms of the event loop until it waits for
 * something or is refused, so 60 of one client that come at once held up everybody else for 60 ms. Here one request
 * begins in each round of the event loop, and clients take turns: whoever sends one request waits for one of each other
 * client's at the most. Tenants wait in one line and strangers in another, and the lines take turns too: however many
 * addresses send keys that are made up, a tenant waits for one of theirs for each of another tenant's.
 */
import type { IncomingMessage } from 'node:http';
import { keyOf } from './api-key.ts';

/** Keys whose tenants are remembered. Clients with others are told apart by their addresses until they ask again. */
const MOST_KEYS = 4_096;

/**
 * Requests that may wait. A client may have left meanwhile and come again on other connections, so that their number
 * bounds nothing. Each takes some KiB, at worst 32 KiB of headers and of the body that Node reads ahead: 128 MiB in
 * all.
 */
const MOST_WAITING = 4_096;

/** Requests that wait to begin, by client; the client whose turn is next comes first. */
type Line = Map<string, (() => void)[]>;

export class Arrivals {
  readonly #ofTenants: Line = new Map();
  readonly #ofStrangers: Line = new Map();
  /** The one whose turn is next comes first. */
  #lines = [this.#ofTenants, this.#ofStrangers];
  #waiting = 0;
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

  /**
   * @param begin called when it is the turn of the request: now, if none has begun in this round. Where too many wait,
   *   the oldest one of the same client begins out of turn: a flood then waits for the event loop, as it is read from
   *   there.
   */
  arrive(request: IncomingMessage, begin: () => void): void {
    if (!this.#hasBegun) {
      this.#awaitRound();
      begin();
      return;
    }
    const tenant = this.#tenantOf(request);
    const line = tenant === undefined ? this.#ofStrangers : this.#ofTenants;
    const client = tenant ?? String(request.socket.remoteAddress);
    const ofClient = line.get(client);
    if (ofClient) ofClient.push(begin);
    else line.set(client, [begin]);
    this.#waiting++;
    if (this.#waiting > MOST_WAITING) this.#takeFrom(line, client)();
  }

  /** Strangers with one address are one client, whatever keys they make up. */
  #tenantOf(request: IncomingMessage): string | undefined {
    const key = keyOf(request);
    return key === undefined ? undefined : this.#tenants.get(key);
  }

  #awaitRound(): void {
    this.#hasBegun = true;
    setImmediate(() => {
      this.#hasBegun = false;
      const next = this.#next();
      if (next === undefined) return;
      this.#awaitRound();
      next();
    });
  }

  #next(): (() => void) | undefined {
    for (const line of this.#lines) {
      const [client] = line.keys();
      if (client === undefined) continue;
      this.#lines = [...this.#lines.filter((other) => other !== line), line];
      return this.#takeFrom(line, client);
    }
    return undefined;
  }

  /** The oldest request of a client, which goes to the end of the line if it has more. */
  #takeFrom(line: Line, client: string): () => void {
    const ofClient = line.get(client)!;
    const begin = ofClient.shift()!;
    line.delete(client);
    if (ofClient.length > 0) line.set(client, ofClient);
    this.#waiting--;
    return begin;
  }
}
