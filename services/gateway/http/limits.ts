/**
 * What the HTTP server grants a client before it knows who that is: so many connections, headers of such a size, and only
 * so long for each step. Slow and huge clients cost a socket each, for a bounded time, and nothing else.
 */
import type { Server, ServerOptions, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { type ErrorCode, ServingError } from '../../lib/process/errors.ts';
import { errorBody } from './errors.ts';
import type { HttpConfig } from './settings.ts';

export type HttpLimits = Pick<HttpConfig, 'maxConnections' | 'receiveTimeoutMs' | 'uploadTimeoutMs'>;

/** All headers of a request together. */
const MAX_HEADER_BYTES = 16 * 1024;
const MAX_HEADERS = 100;
/** A connection between two requests: longer than load balancers keep theirs, which would else send into a closed one. */
const KEEP_ALIVE_MS = 75_000;
/** How long a client may take to read what is left of its answer when all of it has been written. */
const LINGER_MS = 30_000;

/** For node's server; what is too late is looked for every second. */
export const serverOptions = ({ receiveTimeoutMs, uploadTimeoutMs }: HttpLimits): ServerOptions => ({
  maxHeaderSize: MAX_HEADER_BYTES,
  headersTimeout: receiveTimeoutMs,
  requestTimeout: Math.max(receiveTimeoutMs, uploadTimeoutMs),
  connectionsCheckingInterval: Math.min(1_000, receiveTimeoutMs),
});

/** For fastify, which sets these on the server itself. */
export const connectionOptions = ({ receiveTimeoutMs, uploadTimeoutMs }: HttpLimits) => ({
  requestTimeout: Math.max(receiveTimeoutMs, uploadTimeoutMs),
  keepAliveTimeout: KEEP_ALIVE_MS,
});

export function limitConnections(server: Server, { maxConnections }: HttpLimits): void {
  server.maxConnections = maxConnections;
  server.maxHeadersCount = MAX_HEADERS;
}

/**
 * Refuses a request whose body does not come in time: its connection is closed, since the rest of it may still come.
 * @returns to be called when the body has come.
 */
export function awaitBody(request: FastifyRequest, reply: FastifyReply, { receiveTimeoutMs }: HttpLimits): () => void {
  const timer = setTimeout(() => {
    if (request.raw.complete) return;
    const message = `the body did not come within ${receiveTimeoutMs} ms`;
    reply.header('connection', 'close');
    reply.send(new ServingError('request_timeout', message));
  }, receiveTimeoutMs);
  reply.raw.once('close', () => clearTimeout(timer));
  return () => clearTimeout(timer);
}

/** To be called when the last of an answer is written: a client that never reads it must not keep its connection. */
export function closeAfterLinger(response: ServerResponse): void {
  if (response.writableFinished || response.closed) return;
  const timer = setTimeout(() => response.destroy(), LINGER_MS).unref();
  response.once('close', () => clearTimeout(timer));
}

const CLIENT_ERRORS: Readonly<Record<string, readonly [ErrorCode, string]>> = {
  HPE_HEADER_OVERFLOW: ['headers_too_large', `the headers are larger than ${MAX_HEADER_BYTES} bytes`],
  ERR_HTTP_REQUEST_TIMEOUT: ['request_timeout', 'the request did not come in time'],
};

/** Answers what is no HTTP, or too slow to become a request: fastify never sees it. */
export function answerClientError(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy();
  const [code, message] = CLIENT_ERRORS[error.code ?? ''] ?? ['invalid_request', 'this is not HTTP/1.1'];
  const failure = new ServingError(code, message);
  const body = JSON.stringify(errorBody(failure, ''));
  const head = `HTTP/1.1 ${failure.kind.http} ${code}\r\nconnection: close\r\ncontent-type: application/json\r\n`;
  // Destroyed once it is written: a client that does not read must not keep the socket half open.
  socket.end(`${head}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`, () => socket.destroy());
}
