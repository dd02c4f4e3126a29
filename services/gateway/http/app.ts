/** The bare HTTP server: plain or TLS, within limits, with an id for every request. */
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
import { answerClientError, connectionOptions, type HttpLimits, limitConnections, serverOptions } from './limits.ts';

/** The gateway's certificate and its key, in PEM. */
export interface Tls {
  readonly cert: Buffer;
  readonly key: Buffer;
}

export interface AppOptions {
  readonly bodyLimitBytes: number;
  readonly limits: HttpLimits;
  /** Plain HTTP without. */
  readonly tls: Tls | undefined;
  readonly log: Logger;
}

/** What a client may call a request by: it goes into logs and headers. */
const REQUEST_ID = /^[\w.:-]{1,128}$/;

/** @param sendError answers what fails before a route is found. */
export function createApp(
  { bodyLimitBytes, limits, tls, log }: AppOptions,
  sendError: (error: unknown, request: FastifyRequest, reply: FastifyReply) => void,
): FastifyInstance {
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
    return503OnClosing: false, // refused by us, with a code
    ...connectionOptions(limits),
  };
  const http = serverOptions(limits);
  const https = { ...http, ...tls, handshakeTimeout: limits.receiveTimeoutMs };
  // The two kinds of server differ in nothing that the routes see.
  const app = tls ? (fastify({ ...options, https }) as unknown as FastifyInstance) : fastify({ ...options, http });
  limitConnections(app.server, limits);
  return app;
}
