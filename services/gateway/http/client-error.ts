/** Answers to what Node's parser refuses before fastify sees a request. */
import type { Socket } from 'node:net';
import { type ErrorCode, ServingError } from '../../lib/process/errors.ts';
import { answerConnection } from './connections.ts';
import { errorBody } from './errors.ts';
import { toJson } from './json.ts';
import { MAX_HEADER_BYTES } from './limits.ts';

const CLIENT_ERRORS: Readonly<Record<string, readonly [ErrorCode, string]>> = {
  HPE_HEADER_OVERFLOW: ['headers_too_large', `the headers are larger than ${MAX_HEADER_BYTES} bytes`],
  ERR_HTTP_REQUEST_TIMEOUT: ['request_timeout', 'the request did not come in time'],
};

/** Answers bytes that are not HTTP, and requests that come too slowly: fastify never sees either. */
export function answerClientError(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET') return void socket.destroy();
  const [code, message] = CLIENT_ERRORS[error.code ?? ''] ?? ['invalid_request', 'this is not HTTP/1.1'];
  const failure = new ServingError(code, message);
  const body = toJson(errorBody(failure, '', false));
  const head = `HTTP/1.1 ${failure.kind.http} ${code}\r\nconnection: close\r\ncontent-type: application/json\r\n`;
  answerConnection(socket, `${head}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
}
