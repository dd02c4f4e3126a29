/** Sends one JSON request and reads its answer, for long requests with progress. */
import type { IncomingMessage } from 'node:http';
import { json } from 'node:stream/consumers';
import { createParser } from 'eventsource-parser';
import { bearer, sendRequest } from '../../services/http-call.ts';
import { isErrorCode, ServingError } from '../../services/lib/process/errors.ts';
import { TIMEOUT_MS } from './streams.ts';

interface JsonCall {
  readonly apiKey?: string | undefined;
  /**
   * Is called at each event; if given, the request asks for a stream of events, and the last is the answer.
   */
  readonly onEvent?: (() => void) | undefined;
}

/** @throws ServingError with the server's code; the error of the connection. */
export async function ask<T>(
  method: 'POST' | 'PUT',
  url: string,
  body: object,
  { apiKey, onEvent }: JsonCall = {},
): Promise<T> {
  const response = await sendRequest({
    method,
    url,
    headers: {
      'content-type': 'application/json',
      ...(onEvent && { accept: 'text/event-stream' }),
      ...bearer(apiKey),
    },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  const status = response.statusCode ?? 0;
  const ok = status >= 200 && status < 300;
  const answer = onEvent && ok ? await lastEvent(response, onEvent) : await json(response);
  const { error } = answer as { error?: { code?: unknown; message?: unknown } };
  if (ok && error === undefined) return answer as T;
  const code = String(error?.code);
  throw new ServingError(isErrorCode(code) ? code : 'internal', String(error?.message ?? `HTTP ${status}`));
}

async function lastEvent(response: IncomingMessage, onEvent: () => void): Promise<unknown> {
  let [last, done] = ['', false];
  const parser = createParser({
    onEvent: ({ data }) => {
      if (data === '[DONE]') done = true;
      else last = data;
      onEvent();
    },
  });
  const decoder = new TextDecoder();
  for await (const bytes of response) parser.feed(decoder.decode(bytes as Uint8Array, { stream: true }));
  if (!done) throw new Error('the stream ended without [DONE]');
  return JSON.parse(last);
}
