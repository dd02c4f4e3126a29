/** What goes out on a response, as fast as its client reads. */
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { setImmediate as nextTurn } from 'node:timers/promises';

export class Outlet {
  readonly #response: ServerResponse;
  readonly #signal: AbortSignal;
  /** One wait for all who wait: a stream of 128 choices would add 128 listeners to response and signal. */
  #drained: Promise<unknown> | undefined;

  /** @param signal ends the wait for a client that does not read. */
  constructor(response: ServerResponse, signal: AbortSignal) {
    this.#response = response;
    this.#signal = signal;
  }

  /**
   * Sends a text, and waits while the client reads more slowly than we write.
   * @throws the signal's reason.
   */
  async send(text: string): Promise<void> {
    this.#signal.throwIfAborted();
    if (this.#response.write(text)) return;
    this.#drained ??= once(this.#response, 'drain', { signal: this.#signal }).finally(() => {
      this.#drained = undefined;
    });
    try {
      await this.#drained;
    } catch (error) {
      this.#signal.throwIfAborted();
      throw error;
    }
  }

  /**
   * Sends what is made piece by piece, each in a turn of the event loop of its own.
   * @throws the signal's reason.
   */
  async sendPieces(pieces: Iterable<string>): Promise<void> {
    for (const piece of pieces) {
      await this.send(piece);
      await nextTurn();
    }
  }
}
