/** What goes out on a response, as fast as its client reads. */
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { eachInTurns } from '../../lib/async/turns.ts';
import { ServingError } from '../../lib/process/errors.ts';
import { bytesTaken } from './tcp.ts';

/** Looks at a client in the time that it may take nothing: it is cut at most a quarter of it late. */
const LOOKS = 4;

export class Outlet {
  readonly #response: ServerResponse;
  readonly #signal: AbortSignal;
  readonly #slowReaderMs: number;
  /** One wait for all who wait: a stream of 128 choices would add 128 listeners to response and signal. */
  #drained: Promise<unknown> | undefined;

  /**
   * @param signal ends the wait for a client that does not read.
   * @param slowReaderMs how long a client may take not a byte of what waits for it, in ms.
   */
  constructor(response: ServerResponse, signal: AbortSignal, slowReaderMs: number) {
    this.#response = response;
    this.#signal = signal;
    this.#slowReaderMs = slowReaderMs;
  }

  /**
   * Sends a text, and waits while the client reads more slowly than we write.
   * @throws ServingError slow_reader; the signal's reason.
   */
  async send(text: string): Promise<void> {
    this.#signal.throwIfAborted();
    if (this.#response.write(text)) return;
    this.#drained ??= this.#waitForDrain().finally(() => {
      this.#drained = undefined;
    });
    await this.#drained;
  }

  /** The socket's own timer would not do: what the client sends starts it anew, too. */
  async #waitForDrain(): Promise<void> {
    const response = this.#response;
    const slow = new AbortController();
    const taken = () => (response.socket ? bytesTaken(response.socket) : 0);
    let [before, inVain] = [taken(), 0];
    const looks = setInterval(() => {
      const now = taken();
      inVain = now === before ? inVain + 1 : 0;
      before = now;
      if (inVain < LOOKS) return;
      const message = `the client took nothing of its answer for ${this.#slowReaderMs} ms (--slow-reader-ms)`;
      slow.abort(new ServingError('slow_reader', message));
    }, this.#slowReaderMs / LOOKS);
    const live = AbortSignal.any([this.#signal, slow.signal]);
    try {
      await once(response, 'drain', { signal: live });
    } catch (error) {
      live.throwIfAborted();
      throw error;
    } finally {
      clearInterval(looks);
    }
  }

  /**
   * Sends what is made piece by piece, in the turns that all long work of the process shares.
   * @throws ServingError slow_reader; the signal's reason.
   */
  async sendPieces(pieces: Iterable<string>): Promise<void> {
    for await (const piece of eachInTurns(pieces, this.#signal)) await this.send(piece);
  }
}
