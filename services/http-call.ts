/** Requests over HTTP by agents of our own: fetch and the global agents may follow a proxy, by NODE_USE_ENV_PROXY. */
import { type IncomingMessage, Agent as PlainAgent, request as plainRequest } from 'node:http';
import { Agent as TlsAgent, request as tlsRequest } from 'node:https';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

const PLAIN = new PlainAgent({ keepAlive: true });
const TLS = new TlsAgent({ keepAlive: true });

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
 * refusal, is the answer.
 * @throws the signal's reason; the error of the connection.
 */
export function sendRequest({ method, url, headers, body, silenceMs, signal }: HttpCall): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const isWhole = body !== undefined && !(body instanceof Readable);
    const length = isWhole ? { 'content-length': String(Buffer.byteLength(body)) } : {};
    const options = { method, headers: { ...length, ...headers }, signal };
    const call = url.startsWith('https:')
      ? tlsRequest(url, { ...options, agent: TLS })
      : plainRequest(url, { ...options, agent: PLAIN });
    call.once('response', resolve);
    call.on('error', (error) => reject(signal.aborted ? signal.reason : error));
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
