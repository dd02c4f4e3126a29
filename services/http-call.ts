/** Calls of a gateway over HTTP, by agents of our own: fetch and the global agents may follow a proxy. */
import { type IncomingMessage, Agent as PlainAgent, request as plainRequest } from 'node:http';
import { Agent as TlsAgent, request as tlsRequest } from 'node:https';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

const PLAIN = new PlainAgent({ keepAlive: true });
const TLS = new TlsAgent({ keepAlive: true });

export interface HttpCall {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  readonly headers?: Readonly<Record<string, string>>;
  /** Text is sent with its length, a stream in chunks. */
  readonly body?: string | Readable;
  /** Longest time in which nothing comes and nothing goes, in ms; without limit where not given. */
  readonly silenceMs?: number;
  readonly signal: AbortSignal;
}

/**
 * Resolves with the head of the answer; its body follows. An answer that comes while the body is still sent, such as a
 * refusal, is the answer.
 * @throws the signal's reason; the error of the connection.
 */
export function httpCall(
  url: string,
  { method, headers, body, silenceMs, signal }: HttpCall,
): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const length = typeof body === 'string' && { 'content-length': String(Buffer.byteLength(body)) };
    const options = { method, headers: { ...headers, ...length }, signal };
    const call = url.startsWith('https:')
      ? tlsRequest(url, { ...options, agent: TLS })
      : plainRequest(url, { ...options, agent: PLAIN });
    call.once('response', resolve);
    call.on('error', (error) => reject(signal.aborted ? signal.reason : error));
    if (silenceMs !== undefined) {
      call.setTimeout(silenceMs, () => call.destroy(new Error(`nothing was heard for ${silenceMs} ms`)));
    }
    if (typeof body === 'object')
      void pipeline(body, call).catch(() => {}); // the call has the error, or an answer
    else call.end(body);
  });
}
