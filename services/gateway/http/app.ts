/** The bare HTTP server: plain or TLS, with limits, and an id for every request. */
import { randomUUID } from 'node:crypto';
import {
  createServer as createHttpServer,
  type IncomingMessage,
  type RequestListener,
  type ServerOptions,
} from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  fastify,
  LogController,
} from 'fastify';
import { RenewedTls, type Tls } from '../../lib/process/certificate.ts';
import type { Logger } from '../../lib/process/log.ts';
import type { Arrivals } from './arrivals.ts';
import { answerClientError } from './client-error.ts';
import { serveInTurn } from './connections.ts';
import { allowHalfClose } from './half-close.ts';
import type { LastCall } from './last-call.ts';
import { type HttpLimits, serverOptions } from './limits.ts';
import { Room } from './room.ts';
import type { HttpConfig } from './settings.ts';

export interface AppOptions extends HttpLimits, Pick<HttpConfig, 'bodyLimitBytes'> {
  /** undefined for plain HTTP. */
  readonly tls: Tls | undefined;
  readonly log: Logger;
  /** Aborted when the gateway takes no new work. */
  readonly draining: AbortSignal;
  /** Decides when requests begin. */
  readonly arrivals: Arrivals;
  readonly lastCall: LastCall;
}

/** A request id that a client may choose: it goes into logs and headers. */
const REQUEST_ID = /^[\w.:-]{1,128}$/;

/**
 * @param sendError answers requests that fail before a route is found.
 * @param rewriteUrl the URL by which the route of a request is found.
 */
export function createApp(
  limits: AppOptions,
  sendError: (error: unknown, request: FastifyRequest, reply: FastifyReply) => void,
  rewriteUrl: (request: IncomingMessage) => string,
): FastifyInstance {
  const { bodyLimitBytes, log } = limits;
  return fastify({
    loggerInstance: log as FastifyBaseLogger,
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'request_id' }),
    bodyLimit: bodyLimitBytes,
    genReqId: ({ headers }: IncomingMessage) => {
      const given = headers['x-request-id'];
      return typeof given === 'string' && REQUEST_ID.test(given) ? given : randomUUID().replaceAll('-', '');
    },
    rewriteUrl: (raw) => rewriteUrl(raw as IncomingMessage),
    frameworkErrors: sendError,
    clientErrorHandler: answerClientError,
    return503OnClosing: false, // we refuse them ourselves, with a code
    serverFactory: (handle) => createNodeServer(limits, handle),
  });
}

/** Fastify asks for a second server where the host is `localhost`, which may be two addresses. */
function createNodeServer(limits: AppOptions, handle: RequestListener) {
  const { tls, receiveTimeoutMs, maxConnections, draining, arrivals, lastCall } = limits;
  const options = serverOptions(limits);
  const server = tls ? createHttpsServer(tls, options, receiveTimeoutMs) : createHttpServer(options);
  server.maxHeadersCount = 0; // Node would drop the others in silence
  allowHalfClose(server);
  const room = new Room(maxConnections);
  serveInTurn(server, { handle, arrivals, lastCall, room, lingerMs: receiveTimeoutMs, draining });
  return server;
}

function createHttpsServer(tls: Tls, options: ServerOptions, handshakeTimeout: number) {
  const { cert, key } = tls;
  const server = createTlsServer({ ...options, cert, key, allowHalfOpen: true, handshakeTimeout });
  if (tls instanceof RenewedTls) tls.followedBy(server);
  return server;
}
