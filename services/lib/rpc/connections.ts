/**
 * Connections to one peer: calls move to a new connection when the old one has seen many cancelled calls. Cancelling is
 * everyday work here (a keystroke supersedes the previous one, a stop string ends a decode call), and each cancellation
 * resets an HTTP/2 stream. A server closes a connection, with every call on it, when streams are reset faster than a
 * token bucket refills: 1000 at once and 33 per second (nghttp2's guard against rapid resets, which Node 20 has but
 * cannot configure). So calls move before the bucket is empty, and the old connection is closed after its last call.
 *
 * They also move when a connection does not come about: where a network loses packets without a sign, TCP knocks again
 * after 1, 2, 4, 8 seconds and so on, up to a minute. A peer whose network is back would not be noticed for as long as
 * it was away, since gRPC waits for that connection alone.
 */
import { type Client, connectivityState } from '@grpc/grpc-js';

/** Half of the server's limit: the calls still running on a connection that is left may be cancelled as well. */
const BURST = 500;
const PER_SECOND = 30;
/**
 * A connection that does not come about in this time, in which calls wait for it and are given up, is tried anew, in
 * ms. It may be longer than each of them waits (--stall-timeout-ms).
 */
const KNOCKING_MS = 3_000;

interface Connection<C> {
  readonly client: C;
  calls: number;
  /** Resets that the connection may still see, as of `countedAtMs`. */
  resets: number;
  countedAtMs: number;
  /** When the first call began that waited for it to come about, if none has found it there since. */
  awaitedSinceMs: number | undefined;
}

/** A client for one call. */
export interface AcquiredClient<C> {
  readonly client: C;
  /** Call this once, when the call is over. @param reset whether we cancelled it. */
  release(reset: boolean): void;
}

interface ConnectionsOptions {
  /** Whether the peer reads what clients send, and may speak to them in its errors; see status.ts. Not if not given. */
  readonly quotesClient?: boolean;
  /** Called when the connection that calls use was there and has broken. */
  readonly onBroken?: (() => void) | undefined;
}

export class Connections<C extends Pick<Client, 'close' | 'getChannel'>> {
  readonly address: string;
  /** Whether the peer reads what clients send, and may speak to them in its errors; see status.ts. */
  readonly quotesClient: boolean;
  readonly #connect: () => C;
  readonly #onBroken: (() => void) | undefined;
  #current: Connection<C> | undefined;
  #closed = false;

  /** @param connect makes a client with a connection of its own. */
  constructor(address: string, connect: () => C, { quotesClient = false, onBroken }: ConnectionsOptions = {}) {
    this.address = address;
    this.quotesClient = quotesClient;
    this.#connect = connect;
    this.#onBroken = onBroken;
  }

  acquire(): AcquiredClient<C> {
    const connection = this.#usable();
    connection.calls++;
    const sinceMs = performance.now();
    return {
      client: connection.client,
      release: (reset) => {
        connection.calls--;
        if (reset) connection.resets--;
        if (!reset || !isConnecting(connection.client)) connection.awaitedSinceMs = undefined;
        else connection.awaitedSinceMs ??= sinceMs;
        if (connection !== this.#current && connection.calls === 0) connection.client.close();
      },
    };
  }

  /** Connections that calls have moved away from are closed after their last calls. */
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
      const isStuck = nowMs - (current.awaitedSinceMs ?? nowMs) >= KNOCKING_MS && isConnecting(current.client);
      if ((current.resets >= 1 && !isStuck) || this.#closed) return current;
    }
    const client = this.#connect();
    this.#current = { client, calls: 0, resets: BURST, countedAtMs: nowMs, awaitedSinceMs: undefined };
    if (current?.calls === 0) current.client.close();
    if (this.#onBroken) this.#watch(client, this.#onBroken);
    return this.#current;
  }

  /** Calls `onBroken` whenever the client's connection breaks, as long as calls use this client. */
  #watch(client: C, onBroken: () => void): void {
    const channel = client.getChannel();
    const look = (before: connectivityState) => {
      const state = channel.getConnectivityState(false);
      if (state === connectivityState.SHUTDOWN || client !== this.#current?.client) return;
      if (before === connectivityState.READY && state !== before) setImmediate(onBroken); // not amid the change
      channel.watchConnectivityState(state, Number.POSITIVE_INFINITY, () => look(state));
    };
    look(channel.getConnectivityState(false));
  }
}

const isConnecting = (client: Pick<Client, 'getChannel'>) =>
  client.getChannel().getConnectivityState(false) === connectivityState.CONNECTING;
