/** Sends one JSON request and reads its answer, for long requests with progress. */
import { createParser } from 'eventsource-parser';
import { isErrorCode, ServingError } from '../../services/lib/process/errors.ts';
import { TIMEOUT_MS } from './streams.ts';

/**
 * @param onEvent is called at each event; if given, the request asks for a stream of events, and the last is the
 *   answer.
 * @throws ServingError with the server's code, and what fetch throws.
 */
export async function ask<T>(method: 'POST' | 'PUT', url: string, body: object, onEvent?: () => void): Promise<T> {
  const response = await fetch(url, {
    method,
    headers: { 'content-type': 'application/json', ...(onEvent && { accept: 'text/event-stream' }) },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  const answer = onEvent && response.ok ? await lastEvent(response.body!, onEvent) : await response.json();
  const { error } = answer as { error?: { code?: unknown; message?: unknown } };
  if (response.ok && error === undefined) return answer as T;
  const code = String(error?.code);
  throw new ServingError(isErrorCode(code) ? code : 'internal', String(error?.message ?? `HTTP ${response.status}`));
}

async function lastEvent(body: ReadableStream<Uint8Array>, onEvent: () => void): Promise<unknown> {
  let [last, done] = ['', false];
  const parser = createParser({
    onEvent: ({ data }) => {
      if (data === '[DONE]') done = true;
      else last = data;
      onEvent();
    },
  });
  const decoder = new TextDecoder();
  for await (const bytes of body) parser.feed(decoder.decode(bytes, { stream: true }));
  if (!done) throw new Error('the stream ended without [DONE]');
  return JSON.parse(last);
}
