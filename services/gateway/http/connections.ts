/**
 * One connection of a client: its requests are worked on one after the other, and it ends so that the client hears the
 * last answer.
 *
 * HTTP/1.1 lets a client send requests ahead of their answers (pipelining). Node hands out all of them at once, but
 * tells only the response whose turn it is that its socket has closed: work on the others would go on for nobody. Here
 * a request begins when the answer before it is out. The response of a request in work is therefore always the one that
 * hears of its socket, and a connection never has more than one request in work.
 */
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { Server as TlsServer } from 'node:https';
import type { Socket } from 'node:net';
import type { Arrivals } from './arrivals.ts';
import { probeClient } from './half-close.ts';
import { allRead, type LastCall } from './last-call.ts';
import { readLater } from './read-later.ts';
import type { Room } from './room.ts';
import { tcpOf } from './tcp.ts';

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

interface Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
}

/**
 * Requests that may wait on one connection for the answer before theirs. Each can take its headers of 16 KiB and the
 * part of its body that Node reads ahead (16 KiB, from Node 22 on 64 KiB): 16 are 1.3 MiB at worst. Clients that send
 * ahead send a few; a connection with more is closed.
 */
const MAX_WAITING = 16;

/**
 * Bytes that are read and dropped after an answer that came before the end of its request: many clients read the answer
 * only when they have sent all. 64 MiB are 16 times the largest body that is accepted by default.
 */
const MAX_DROPPED_BYTES = 64 * 1024 * 1024;

const connections = new WeakMap<Socket, Connection>();
/** Requests whose client sends the body only after `100 Continue`. */
const awaitingContinue = new WeakMap<IncomingMessage, ServerResponse>();

export interface Serving {
  readonly handle: Handler;
  /** Decides when the requests of all connections begin. */
  readonly arrivals: Pick<Arrivals, 'arrive'>;
  readonly room: Room;
  /**
   * Time that a client gets to stop sending, once it has been answered for the last time; and for its next request, if
   * it is a stranger.
   */
  readonly lingerMs: number;
  /** Whom a drain still serves. */
  readonly lastCall: Pick<LastCall, 'came'>;
  /**
   * When it is aborted, what clients have sent by then is read, and then a connection closes as soon as it is idle: a
   * client that keeps it would send its next request to a process that takes none, though another gateway stays.
   */
  readonly draining: AbortSignal;
}

/** Serves each connection of a server in turn. */
export function serveInTurn(server: Server, serving: Serving): void {
  const open = new Set<Connection>();
  server.on('connection', (socket: Socket) => serving.room.enter(socket));
  server.on(server instanceof TlsServer ? 'secureConnection' : 'connection', (socket: Socket) => {
    const connection = new Connection(socket, serving);
    connections.set(socket, connection);
    open.add(connection);
    socket.once('close', () => open.delete(connection));
  });
  serving.draining.addEventListener('abort', async () => {
    await allRead();
    for (const connection of open) connection.leave();
  });
  const receive: Handler = (request, response) => connections.get(request.socket)?.receive({ request, response });
  server.on('request', receive);
  server.on('checkContinue', (request: IncomingMessage, response: ServerResponse) => {
    awaitingContinue.set(request, response);
    receive(request, response);
  });
}

/**
 * Whether a connection can serve further requests after an answer to this one that comes before its end: what is left
 * of it is known to be little, and is read and dropped.
 */
export function canOutlast({ complete, headers }: IncomingMessage): boolean {
  return complete !== false || Number(headers['content-length'] ?? Number.POSITIVE_INFINITY) <= MAX_DROPPED_BYTES;
}

/** Must be called when a client needs no key, or has shown a valid one: until then its connection is a stranger's. */
export function welcome({ socket }: IncomingMessage): void {
  connections.get(socket)?.welcome();
}

/** Whether the connection of a request is kept for a short time only when it is idle. */
export const isStranger = ({ socket }: IncomingMessage): boolean => connections.get(socket)?.known === false;

/** Must be called when the body of a request is read for the first time: until then a client may hold it back. */
export function continueBody(request: IncomingMessage): void {
  awaitingContinue.get(request)?.writeContinue();
  awaitingContinue.delete(request);
}

/**
 * Answers a connection whose bytes are not a request: nothing else is read from it or sent on it.
 * @param answer a whole response.
 */
export function answerConnection(socket: Socket, answer: string): void {
  const connection = connections.get(socket);
  if (connection === undefined) socket.destroy();
  else connection.fail(answer);
}

class Connection {
  readonly #socket: Socket;
  readonly #serving: Serving;
  #known = false;
  #current: Exchange | undefined;
  readonly #waiting: Exchange[] = [];
  readonly #probe: () => void;
  #closing = false;
  /** Whether a request has been answered. A client that has just connected hears why it is refused. */
  #hasServed = false;
  /** Whether it closes when it is idle. */
  #isLeaving = false;
  /** Closes the connection when its client does not stop sending. */
  #linger: NodeJS.Timeout | undefined;

  constructor(socket: Socket, serving: Serving) {
    this.#socket = socket;
    this.#serving = serving;
    // Node closes a connection by this method, after an answer that is the last one.
    socket.destroySoon = () => this.#closeSoon();
    socket.once('close', () => this.#closed());
    this.#probe = probeClient(socket, () => (this.#isDeaf ? this.#current?.response : undefined));
  }

  get known(): boolean {
    return this.#known;
  }

  welcome(): void {
    this.#known = true;
  }

  /** Closes the connection if it is idle; one in work closes after its last answer. */
  leave(): void {
    this.#isLeaving = true;
    if (this.#hasServed && this.#current === undefined) this.#closeSoon();
  }

  receive(exchange: Exchange): void {
    if (this.#closing) return;
    readLater(this.#socket);
    if (this.#waiting.length === MAX_WAITING) return void this.#socket.destroy();
    this.#serving.lastCall.came(exchange.request, exchange.response, this.#hasServed && !this.#isLeaving);
    if (this.#current === undefined) {
      this.#begin(exchange);
    } else {
      this.#waiting.push(exchange);
      this.#probe();
    }
  }

  fail(answer: string): void {
    if (this.#closing) return; // its client was answered already, and has stopped in the middle of what it sent
    const { response } = this.#current ?? {};
    // Within an answer nothing else can be said.
    if (!this.#socket.writable || response?.headersSent) {
      this.#socket.destroy();
      return;
    }
    this.#socket.write(answer);
    this.#closeSoon();
    if (response) tellClosed(response);
  }

  /**
   * Whether the end of the connection would not be seen: the client has ended its sending side, or nothing is read
   * since a request that waits has a body that nobody takes yet.
   */
  get #isDeaf(): boolean {
    return this.#socket.readableEnded || this.#waiting.at(-1)?.request.complete === false;
  }

  #begin(exchange: Exchange): void {
    this.#current = exchange;
    this.#serving.room.busy(tcpOf(this.#socket));
    const { request, response } = exchange;
    response.once('close', () => {
      this.#serving.room.idle(tcpOf(this.#socket), this.#known);
      if (request.complete) this.#next();
      else if (canOutlast(request)) this.#awaitRest(request);
      else this.#closeSoon();
    });
    this.#serving.arrivals.arrive(request, () => this.#handle(exchange));
  }

  /** A request whose client has left before its turn is refused like any other: it has its line in the log. */
  #handle({ request, response }: Exchange): void {
    if (response.destroyed) setImmediate(tellClosed, response);
    this.#serving.handle(request, response);
  }

  #next(): void {
    this.#current = undefined;
    this.#hasServed = true;
    const next = this.#closing ? undefined : this.#waiting.shift(); // those of a closed connection end with it
    if (next) this.#begin(next);
    else if (this.#serving.draining.aborted) this.#closeSoon();
    // The next request ends this timeout, as it ends the longer one that Node has set.
    else if (!this.#known) this.#socket.setTimeout(this.#serving.lingerMs);
  }

  /** Node reads and drops the rest of a request that has been answered. */
  #awaitRest(request: IncomingMessage): void {
    if (this.#closing) return;
    this.#startLinger();
    request.resume().once('end', () => {
      clearTimeout(this.#linger);
      this.#next();
    });
  }

  #startLinger(): void {
    clearTimeout(this.#linger);
    this.#linger = setTimeout(() => this.#socket.destroy(), this.#serving.lingerMs).unref();
  }

  #closed(): void {
    this.#closing = true;
    clearTimeout(this.#linger);
    for (const exchange of this.#waiting.splice(0)) {
      exchange.response.destroyed = true;
      this.#serving.arrivals.arrive(exchange.request, () => this.#handle(exchange));
    }
  }

  /**
   * Ends the sending side once all is sent, then reads and drops what the client still sends: closing at once would
   * reset the connection, and the client would lose an answer that it has not read yet.
   */
  #closeSoon(): void {
    if (this.#closing) return;
    this.#closing = true;
    const socket = this.#socket;
    this.#startLinger();
    socket.end();
    socket.resume();
    // Node starts reading again in its own listener of `resume`, which goes with its parser.
    setImmediate(dropAll, socket);
  }
}

/** Takes a socket from Node's parser, and reads and drops what comes. */
function dropAll(socket: Socket): void {
  let dropped = 0;
  socket.removeAllListeners('data');
  socket.on('data', (data) => {
    dropped += data.length;
    if (dropped > MAX_DROPPED_BYTES) socket.destroy();
  });
}

/** Tells whoever works on a response that its socket has closed, where Node does not. */
function tellClosed(response: ServerResponse): void {
  response.destroyed = true;
  response.emit('close');
}
