/** A TCP proxy in front of one process, which can make its link slow, broken or dead. It needs no special rights. */

import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { formatHostPort, parseHostPort } from '../../services/lib/process/host-port.ts';

/**
 * `up` carries everything, late by `delayMs`; `down` refuses connections; `dead` keeps them open and carries nothing,
 * as if the machine were gone.
 */
type LinkState = 'up' | 'down' | 'dead';

export class Link {
  /** Each host:port that the link leads to: connections take turns. Without one they are refused. */
  targets: readonly string[] = [];
  /** Delay of every part, in each direction. */
  delayMs = 0;
  #state: LinkState = 'up';
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #broken = new Set<Socket>();
  #turn = 0;

  private constructor() {
    this.#server = createServer((near) => this.#accept(near));
  }

  /** @throws Error of the system, such as EADDRINUSE. */
  static async open(host = '127.0.0.1', port = 0): Promise<Link> {
    const link = new Link();
    link.#server.listen(port, host);
    await once(link.#server, 'listening');
    return link;
  }

  /** The host:port to connect to. */
  get address(): string {
    const { address, port } = this.#server.address() as AddressInfo;
    return formatHostPort(address, port);
  }

  /** The one host:port that the link leads to. */
  set target(target: string) {
    this.targets = [target];
  }

  set state(state: LinkState) {
    this.#state = state;
    if (state === 'dead') return;
    // What was swallowed never arrives, so such connections cannot go on.
    for (const socket of state === 'down' ? this.#sockets : this.#broken) socket.destroy();
    this.#broken.clear();
  }

  /** Number of connections of which a part was swallowed. */
  get broken(): number {
    return this.#broken.size;
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }

  #accept(near: Socket): void {
    const target = this.targets[this.#turn++ % this.targets.length];
    if (this.#state === 'down' || target === undefined) return void near.destroy();
    const { host, port } = parseHostPort(target)!;
    const far = connect(port, host);
    this.#carry(near, far);
    this.#carry(far, near);
  }

  #carry(from: Socket, to: Socket): void {
    this.#sockets.add(from);
    from.setNoDelay(true);
    from.on('error', () => {});
    from.on('close', () => {
      this.#sockets.delete(from);
      if (!from.readableEnded) to.destroy();
    });
    // Parts stay in order, also while the delay changes.
    let last = Promise.resolve();
    const later = (act: () => void) => {
      const dueMs = performance.now() + this.delayMs;
      last = last.then(async () => {
        const waitMs = dueMs - performance.now();
        if (waitMs > 0) await sleep(waitMs);
        act();
      });
    };
    from.on('data', (part) => {
      if (this.#state === 'dead') return void this.#broken.add(from);
      later(() => {
        if (to.destroyed || to.write(part)) return;
        from.pause();
        to.once('drain', () => from.resume());
      });
    });
    from.on('end', () => later(() => to.end()));
  }
}
