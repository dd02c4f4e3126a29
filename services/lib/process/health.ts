/**
 * The small server beside a worker's gRPC port: /livez, /readyz and /metrics. Where the service has certificates the
 * port speaks HTTPS as well as HTTP: a connection's first byte tells which. Probes of orchestrators mostly know no TLS.
 */
import { createServer, type RequestListener, type ServerResponse } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import { type AddressInfo, createServer as createTcpServer, type Server, type Socket } from 'node:net';
import type { RenewedTls } from './certificate.ts';
import { ServingError } from './errors.ts';
import { formatHostPort } from './host-port.ts';
import type { Lifecycle } from './lifecycle.ts';
import { exposition } from './metrics.ts';
import { listenError } from './os-errors.ts';

interface HealthOptions {
  /** Brings gauges up to date. */
  readonly beforeScrape?: () => void;
  /** A line that /readyz says after the phase. */
  readonly note?: string | undefined;
  /** Certificate and key for HTTPS on the same port; undefined for HTTP alone. */
  readonly tls?: RenewedTls | undefined;
}

/**
 * Serves until the process ends, also while it drains, when probes and graphs matter most. The server does not keep the
 * process alive.
 * @returns the host:port that it listens on.
 * @throws ServingError address_in_use.
 */
export async function serveHealth(
  host: string,
  port: number,
  life: Pick<Lifecycle, 'phase'>,
  { beforeScrape = () => {}, note, tls }: HealthOptions = {},
): Promise<string> {
  const noted = note === undefined ? '' : `\n${note}`;
  const server = serverOf(tls, (request, response) => {
    const path = request.url?.split('?')[0];
    if (path === '/livez') answer(response, 200, 'ok');
    else if (path === '/readyz') {
      answer(response, life.phase === 'ready' ? 200 : 503, `${life.phase}${noted}`);
    } else if (path === '/metrics') void answerScrape(response, request.headers.accept, beforeScrape);
    else answer(response, 404, 'not found: try /livez, /readyz or /metrics');
  });
  server.unref();
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(listenError(`--metrics-host ${host} --metrics-port ${port}`, error)));
    server.listen(port, host, resolve);
  });
  const { port: bound } = server.address() as AddressInfo;
  return formatHostPort(host, bound);
}

/** Time for a request, and before it for the first byte and the handshake of its connection, in ms. */
const REQUEST_MS = 5_000;
/** The first byte of a TLS connection: a record of the handshake. */
const TLS_HANDSHAKE = 0x16;

function serverOf(tls: HealthOptions['tls'], listener: RequestListener): Server {
  const times = { headersTimeout: REQUEST_MS, requestTimeout: REQUEST_MS };
  const plain = createServer(times, listener);
  if (tls === undefined) return plain;
  const { cert, key } = tls;
  const secure = createHttpsServer({ cert, key, ...times, handshakeTimeout: REQUEST_MS }, listener);
  tls.followedBy(secure);
  secure.on('tlsClientError', (_, socket) => socket.destroy());
  return createTcpServer((socket: Socket) => {
    socket.on('error', () => socket.destroy());
    socket.setTimeout(REQUEST_MS, () => socket.destroy());
    socket.once('readable', () => {
      const first = socket.read(1) as Buffer | null;
      if (first === null) return void socket.destroy();
      socket.setTimeout(0);
      socket.unshift(first);
      (first[0] === TLS_HANDSHAKE ? secure : plain).emit('connection', socket);
    });
  });
}

function answer(response: ServerResponse, status: number, body: string, type = 'text/plain'): void {
  response.writeHead(status, { 'content-type': type }).end(body);
}

/** A gauge that cannot be read makes the scrape fail, not the process. */
async function answerScrape(response: ServerResponse, accept: string | undefined, beforeScrape: () => void) {
  try {
    beforeScrape();
    const { text, type } = await exposition(accept);
    answer(response, 200, text, type);
  } catch (error) {
    answer(response, 500, ServingError.from(error).message);
  }
}
