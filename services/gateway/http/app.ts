/** The bare HTTP server: plain or TLS, with limits, and an id for every request. */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  fastify,
  LogController,
} from 'fastify';
import type { Logger } from '../../lib/process/log.ts';
import { allowHalfClose } from './half-close.ts';
import { answerClientError, connectionOptions, type HttpLimits, limitConnections, serverOptions } from './limits.ts';
import type { HttpConfig } from './settings.ts';
import type { Tls } from './tls.ts';

export interface AppOptions extends HttpLimits, Pick<HttpConfig, 'bodyLimitBytes'> {
  /** undefined for plain HTTP. */
  readonly tls: Tls | undefined;
  readonly log: Logger;
}

/** A request id that a client may choose: it goes into logs and headers. */
const REQUEST_ID = /^[\w.:-]{1,128}$/;

/** @param sendError answers requests that fail before a route is found. */
export function createApp(
  limits: AppOptions,
  sendError: (error: unknown, request: FastifyRequest, reply: FastifyReply) => void,
): FastifyInstance {
  const { bodyLimitBytes, tls, log } = limits;
  const options = {
    loggerInstance: log as FastifyBaseLogger,
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'request_id' }),
    bodyLimit: bodyLimitBytes,
    genReqId: ({ headers }: IncomingMessage) => {
      const given = headers['x-request-id'];
      return typeof given === 'string' && REQUEST_ID.test(given) ? given : randomUUID().replaceAll('-', '');
    },
    frameworkErrors: sendError,
    clientErrorHandler: answerClientError,
    return503OnClosing: false, // we refuse them ourselves, with a code
    ...connectionOptions(limits),
  };
  const http = serverOptions(limits);
  const https = { ...http, ...tls, allowHalfOpen: true, handshakeTimeout: limits.receiveTimeoutMs };
  // Routes see no difference between the two kinds of server.
  const app = tls ? (fastify({ ...options, https }) as unknown as FastifyInstance) : fastify({ ...options, http });
  limitConnections(app.server, limits);
  allowHalfClose(app.server);
  return app;
}
