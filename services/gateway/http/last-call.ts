/**
 * The beginning of a drain, for clients that keep a connection. They cannot know that it begins, so what they have sent
 * by then is served as ever, though the gateway takes nothing new. Only then are idle connections closed. What a client
 * sends behind that gets no answer, and was not begun: it may be sent again.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setImmediate as nextTurn } from 'node:timers/promises';

export class LastCall {
  readonly #draining: AbortSignal;
  /** Requests that are served also during a drain, until they are let in or over. */
  readonly #timely = new Set<IncomingMessage>();
  #whenNone: (() => void)[] = [];

  /** @param draining aborted when the drain begins. */
  constructor(draining: AbortSignal) {
    this.#draining = draining;
  }

  /**
   * Must be called with each request as it comes.
   * @param isKept whether its connection is an older one, not closed yet.
   */
  came(request: IncomingMessage, response: ServerResponse, isKept: boolean): void {
    if (this.#draining.aborted && !isKept) return;
    this.#timely.add(request);
    response.once('close', () => this.letIn(request));
  }

  /** Whether a request that is not let in yet is served also by a gateway that drains. */
  isTimely(request: IncomingMessage): boolean {
    return this.#timely.has(request);
  }

  /** A request is among those in flight, which the drain waits for. */
  letIn(request: IncomingMessage): void {
    if (this.#timely.delete(request) && this.#timely.size === 0) for (const go of this.#whenNone.splice(0)) go();
  }

  /**
   * Resolves when all that had reached this process as the drain began is let in, or over; after `timeoutMs` at the
   * latest. Nothing is timely then: what is not let in, such as a request whose body is still on its way, is refused.
   */
  async over(timeoutMs: number): Promise<void> {
    await allRead();
    if (this.#timely.size > 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timeoutMs);
        this.#whenNone.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
    this.#timely.clear();
  }
}

/** Resolves when the event loop has read what had reached this process: after one whole turn of it. */
export async function allRead(): Promise<void> {
  await nextTurn(); // the rest of this turn
  await nextTurn();
}
