/** Requests over HTTP by agents of our own: fetch and the global agents may follow a proxy, by NODE_USE_ENV_PROXY. */
import { type IncomingMessage, Agent as PlainAgent, request as plainRequest } from 'node:http';
import { Agent as TlsAgent, request as tlsRequest } from 'node:https';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

const PLAIN = new PlainAgent({ keepAlive: true });
const TLS = new TlsAgent({ keepAlive: true });
/** How a connection fails that the server has closed. */
const HUNG_UP: ReadonlySet<string> = new Set(['ECONNRESET', 'EPIPE']);

export interface HttpCall {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  readonly url: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** Text and bytes are sent with their length, a stream in chunks. */
  readonly body?: string | Buffer | Readable;
  /** Longest time in which nothing comes and nothing goes, in ms; without limit where not given. */
  readonly silenceMs?: number;
  readonly signal: AbortSignal;
}

/**
 * Resolves with the head of the answer; its body follows. An answer that comes while the body is still sent, such as a
 * refusal, is the answer. A request on a connection that was kept is sent again if that ends without any answer: the
 * server has most likely closed it, idle, before the request came (RFC 9112, 9.3.1). Repeated requests do no harm here:
 * completions change nothing, and uploads and removals have the same result twice. A stream cannot be sent again.
 * @throws the signal's reason; the error of the connection.
 */
export function sendRequest(httpCall: HttpCall): Promise<IncomingMessage> {
  const { method, url, headers, body, silenceMs, signal } = httpCall;
  return new Promise((resolve, reject) => {
    const isWhole = body !== undefined && !(body instanceof Readable);
    const length = isWhole ? { 'content-length': String(Buffer.byteLength(body)) } : {};
    const options = { method, headers: { ...length, ...headers }, signal };
    const call = url.startsWith('https:')
      ? tlsRequest(url, { ...options, agent: TLS })
      : plainRequest(url, { ...options, agent: PLAIN });
    let isAnswered = false;
    call.once('response', (response) => {
      isAnswered = true;
      resolve(response);
    });
    call.on('error', (error: NodeJS.ErrnoException) => {
      if (signal.aborted) return reject(signal.reason);
      const wasClosed = call.reusedSocket && !isAnswered && HUNG_UP.has(error.code ?? '');
      // It ends: each try takes a connection that was kept out of the pool, or is the first on a new one.
      if (wasClosed && !(body instanceof Readable)) resolve(sendRequest(httpCall));
      else reject(error);
    });
    if (silenceMs !== undefined) {
      call.setTimeout(silenceMs, () => call.destroy(new Error(`nothing was heard for ${silenceMs} ms`)));
    }
    if (body instanceof Readable)
      void pipeline(body, call).catch(() => {}); // the call has the error, or an answer
    else call.end(body);
  });
}

/** The header that carries an API key; none where there is no key. */
export const bearer = (apiKey: string | undefined): Readonly<Record<string, string>> =>
  apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
