/** The connections that a server holds at once: when it is full, an idle one makes room for a new one. */
import type { Socket } from 'node:net';

export class Room {
  readonly #places: number;
  readonly #taken = new Set<Socket>();
  /** Sockets without a request in work or waiting, those that have been idle longest first. */
  readonly #idleStrangers = new Set<Socket>();
  readonly #idleKnown = new Set<Socket>();

  constructor(places: number) {
    this.#places = places;
  }

  /** A connection that has come: it is closed if the server is full and nothing is idle. */
  enter(socket: Socket): void {
    if (this.#taken.size >= this.#places) {
      const [longest = socket] = [...first(this.#idleStrangers), ...first(this.#idleKnown)];
      this.#leave(longest);
      longest.destroy();
      if (longest === socket) return;
    }
    this.#taken.add(socket);
    this.#idleStrangers.add(socket);
    socket.once('close', () => this.#leave(socket));
  }

  /** @param known whether its client has shown a valid key: such connections make room after all others. */
  idle(socket: Socket, known: boolean): void {
    this.busy(socket);
    if (this.#taken.has(socket)) (known ? this.#idleKnown : this.#idleStrangers).add(socket);
  }

  busy(socket: Socket): void {
    this.#idleStrangers.delete(socket);
    this.#idleKnown.delete(socket);
  }

  #leave(socket: Socket): void {
    this.#taken.delete(socket);
    this.busy(socket);
  }
}

function* first(sockets: Iterable<Socket>): Generator<Socket> {
  for (const socket of sockets) return yield socket;
}
