/**
 * One peer, over a new connection whenever the old one has seen many cancelled calls. Cancelling is everyday work here (a
 * keystroke supersedes the last one, a stop string ends a decode call), and each one resets an HTTP/2 stream. A server
 * closes a connection, and with it every call under way, when streams are reset faster than a token bucket refills: 1000
 * at once and 33 a second (nghttp2's guard against rapid resets, which Node 20 has and cannot set). So calls move on
 * before the bucket is empty, and the old connection is closed after its last call.
 */
import type { Client } from '@grpc/grpc-js';

/** Half of what the server grants: the calls that are still under way when a connection is left may be cancelled as well. */
const BURST = 500;
const PER_SECOND = 30;

interface Connection<C> {
  readonly client: C;
  calls: number;
  /** Resets that it may still see, as of `countedAtMs`. */
  resets: number;
  countedAtMs: number;
}

/** A client for one call. */
export interface Lent<C> {
  readonly client: C;
  /** Once, when the call is over. @param reset whether it was cut off by us. */
  giveBack(reset: boolean): void;
}

export class Connections<C extends Pick<Client, 'close'>> {
  readonly address: string;
  readonly #connect: () => C;
  #current: Connection<C> | undefined;
  #closed = false;

  /** @param connect makes a client with a connection of its own. */
  constructor(address: string, connect: () => C) {
    this.address = address;
    this.#connect = connect;
  }

  acquire(): Lent<C> {
    const connection = this.#usable();
    connection.calls++;
    return {
      client: connection.client,
      giveBack: (reset) => {
        connection.calls--;
        if (reset) connection.resets--;
        if (connection !== this.#current && connection.calls === 0) connection.client.close();
      },
    };
  }

  /** Those left behind are closed after their last calls. */
  close(): void {
    this.#closed = true;
    this.#current?.client.close();
  }

  #usable(): Connection<C> {
    const nowMs = performance.now();
    const current = this.#current;
    if (current !== undefined) {
      const refilled = (PER_SECOND * (nowMs - current.countedAtMs)) / 1000;
      current.resets = Math.min(BURST, current.resets + refilled);
      current.countedAtMs = nowMs;
      if (current.resets >= 1 || this.#closed) return current;
    }
    this.#current = { client: this.#connect(), calls: 0, resets: BURST, countedAtMs: nowMs };
    if (current?.calls === 0) current.client.close();
    return this.#current;
  }
}
