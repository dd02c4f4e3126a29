/**
 * Where a service listens whose callers prove themselves by the system's secret. Members go on to the gRPC server. A
 * stranger that speaks gRPC is told why it is not served, whatever it calls. Every refusal is logged, at most one line
 * per 10 s.
 */
import { createServer as createHttp2Server, type ServerHttp2Session } from 'node:http2';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { ServingError } from '../process/errors.ts';
import { formatHostPort } from '../process/host-port.ts';
import type { Logger } from '../process/log.ts';
import type { SystemSecret } from '../process/system-secret.ts';
import { meetCaller, PROOF_TIMEOUT_MS } from './membership.ts';
import { toStatus } from './status.ts';

/** Connections that have not proven themselves yet; the oldest is closed for one more. A proof takes a few ms. */
const MOST_UNPROVEN = 256;
const LOG_EVERY_MS = 10_000;
/** What a stranger may send until it has read its answer, in bytes, and its calls at once. */
const STRANGER = { maxSessionMemory: 1, settings: { maxConcurrentStreams: 8, initialWindowSize: 16_384 } };

export interface Door {
  readonly port: number;
  /** Takes no more connections; those of members go on. */
  close(): void;
}

/**
 * @param onMember gets the connection of every member, from which nothing of HTTP/2 has been read.
 * @throws Error of the operating system when the address cannot be listened on.
 */
export async function listenForMembers(
  host: string,
  port: number,
  secret: SystemSecret,
  onMember: (socket: Socket) => void,
  log: Pick<Logger, 'warn'> | undefined,
): Promise<Door> {
  const refuse = createRefusals();
  const refused = refusalLog(log);
  /** The oldest first. */
  const unproven = new Set<Socket>();
  const meet = async (socket: Socket) => {
    const timer = setTimeout(
      () => socket.destroy(new Error(`it did not prove within ${PROOF_TIMEOUT_MS} ms that it knows the secret`)),
      PROOF_TIMEOUT_MS,
    );
    unproven.add(socket);
    socket.once('close', () => {
      clearTimeout(timer);
      unproven.delete(socket);
    });
    const oldest = unproven.size > MOST_UNPROVEN ? [...unproven][0] : undefined;
    oldest?.destroy(new Error(`more than ${MOST_UNPROVEN} connections wait to prove that they know the secret`));
    const from = formatHostPort(socket.remoteAddress ?? '', socket.remotePort ?? 0);
    try {
      if ((await meetCaller(socket, secret)) === 'member') {
        clearTimeout(timer);
        unproven.delete(socket);
        onMember(socket);
      } else {
        refused(from, 'it did not prove that it knows the secret');
        refuse(socket); // the timer goes on
      }
    } catch (error) {
      refused(from, (error as Error).message);
      socket.destroy();
    }
  };
  const server = createServer({ noDelay: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    void meet(socket);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen({ host, port }, () => {
      server.off('error', reject);
      resolve();
    });
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () => {
      server.close();
      for (const socket of unproven) socket.destroy();
    },
  };
}

/** Answers every call of a connection with UNAUTHENTICATED. */
function createRefusals(): (socket: Socket) => void {
  const { code, details, metadata } = toStatus(
    new ServingError(
      'not_a_member',
      'this service answers members of its system only, and the caller has not proven that it is one',
    ),
  );
  const trailers = {
    ':status': 200,
    'content-type': 'application/grpc+proto',
    'grpc-status': String(code),
    'grpc-message': encodeURI(details),
    ...metadata.toHttp2Headers(),
  };
  const http2 = createHttp2Server(STRANGER);
  http2.on('sessionError', () => {}); // whoever does not speak HTTP/2 either
  http2.on('session', (session: ServerHttp2Session) => session.on('error', () => {}));
  http2.on('stream', (stream) => {
    stream.on('error', () => {});
    stream.respond(trailers, { endStream: true });
    stream.close();
  });
  return (socket) => void http2.emit('connection', socket);
}

/** Says who was refused and why, and how many were refused since the last line. */
function refusalLog(log: Pick<Logger, 'warn'> | undefined): (address: string, reason: string) => void {
  let loggedMs = -Infinity;
  let unsaid = 0;
  return (address, reason) => {
    const nowMs = performance.now();
    if (nowMs - loggedMs < LOG_EVERY_MS) {
      unsaid++;
      return;
    }
    log?.warn({ address, reason, more: unsaid }, 'a caller was refused: it is not a member of this system');
    loggedMs = nowMs;
    unsaid = 0;
  };
}
