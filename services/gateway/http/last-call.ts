/**
 * The beginning of a drain, for clients that keep a connection. They cannot know that it begins, so what they have sent
 * by then is served as ever, though the gateway takes nothing new. Only then are idle connections closed. What a client
 * sends behind that gets no answer, and was not begun: it may be sent again.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setImmediate as nextTurn } from 'node:timers/promises';

export class LastCall {
  readonly #draining: AbortSignal;
  readonly #timely = new WeakSet<IncomingMessage>();
  /** Requests that came since the drain began and are timely, until they are let in or over. */
  readonly #awaited = new Set<IncomingMessage>();
  #whenNone: (() => void)[] = [];

  /** @param draining aborted when the drain begins. */
  constructor(draining: AbortSignal) {
    this.#draining = draining;
  }

  /** Must be called with each request as it comes. @param isKept whether its connection is an older one, not closed yet. */
  came(request: IncomingMessage, response: ServerResponse, isKept: boolean): void {
    const isDraining = this.#draining.aborted;
    if (isDraining && !isKept) return;
    this.#timely.add(request);
    if (!isDraining) return;
    this.#awaited.add(request);
    response.once('close', () => this.letIn(request));
  }

  /** Whether a request is served also by a gateway that drains. */
  isTimely(request: IncomingMessage): boolean {
    return this.#timely.has(request);
  }

  /** A request is among those in flight, which the drain waits for. */
  letIn(request: IncomingMessage): void {
    if (this.#awaited.delete(request) && this.#awaited.size === 0) for (const go of this.#whenNone.splice(0)) go();
  }

  /** Resolves when all that had reached this process as the drain began is let in, or over. */
  async over(): Promise<void> {
    await allRead();
    if (this.#awaited.size > 0) await new Promise<void>((resolve) => this.#whenNone.push(resolve));
  }
}

/** Resolves when the event loop has read what had reached this process: after one whole turn of it. */
export async function allRead(): Promise<void> {
  await nextTurn(); // the rest of this turn
  await nextTurn();
}
