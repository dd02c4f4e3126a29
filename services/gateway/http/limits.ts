/**
 * Limits for clients before the HTTP server knows who they are: the number of connections, the size of headers, and the
 * time of each step. A slow or huge client costs one socket for a bounded time, and nothing else.
 */
import type { ServerOptions, ServerResponse } from 'node:http';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { ServingError } from '../../lib/process/errors.ts';
import type { HttpConfig } from './settings.ts';

export type HttpLimits = Pick<
  HttpConfig,
  'maxConnections' | 'receiveTimeoutMs' | 'slowReaderMs' | 'keepAliveTimeoutMs' | 'uploadTimeoutMs'
>;

/** Size of all headers of a request together. */
export const MAX_HEADER_BYTES = 16 * 1024;
const MAX_HEADERS = 100;
/** Time that a client gets to read the rest of its answer after all of it has been written, in ms. */
const LINGER_MS = 30_000;

/** Options of Node's own server, which looks for late requests every second. */
export const serverOptions = ({
  receiveTimeoutMs,
  keepAliveTimeoutMs,
  uploadTimeoutMs,
}: HttpLimits): ServerOptions => ({
  maxHeaderSize: MAX_HEADER_BYTES,
  headersTimeout: receiveTimeoutMs,
  requestTimeout: Math.max(receiveTimeoutMs, uploadTimeoutMs),
  // A load balancer that keeps connections longer would send a request into one that is being closed.
  keepAliveTimeout: keepAliveTimeoutMs,
  connectionsCheckingInterval: Math.min(1_000, receiveTimeoutMs),
});

/** @throws ServingError headers_too_large */
export function assertFewHeaders({ raw }: FastifyRequest): void {
  const count = raw.rawHeaders.length / 2;
  if (count <= MAX_HEADERS) return;
  throw new ServingError('headers_too_large', `the request has ${count} headers, more than ${MAX_HEADERS}`);
}

/**
 * Refuses a request whose body does not come in time. Its connection is closed, since the rest of the body may still
 * come.
 * @returns must be called when the body has come.
 */
export function awaitBody(request: FastifyRequest, reply: FastifyReply, { receiveTimeoutMs }: HttpLimits): () => void {
  const timer = setTimeout(() => {
    if (request.raw.complete || reply.sent) return;
    const message = `the body did not come within ${receiveTimeoutMs} ms (--receive-timeout-ms)`;
    reply.send(new ServingError('request_timeout', message));
  }, receiveTimeoutMs);
  const stop = () => clearTimeout(timer);
  reply.raw.once('close', stop);
  return stop;
}

/** Must be called when all of an answer has been written: a client that never reads it must not keep its connection. */
export function closeAfterLinger(response: ServerResponse): void {
  if (response.writableFinished || response.closed) return;
  const timer = setTimeout(() => response.destroy(), LINGER_MS).unref();
  response.once('close', () => clearTimeout(timer));
}
