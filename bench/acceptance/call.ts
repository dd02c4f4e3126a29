/** One request of the acceptance suite: what it sends, and its answer read to the end. */
import assert from 'node:assert/strict';
import { text as textOf } from 'node:stream/consumers';
import { createParser } from 'eventsource-parser';
import { bearer, sendRequest } from '../../services/http-call.ts';

export interface Call {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** Path with its query, as it follows the URL of the deployment. */
  readonly path: string;
  /** Sent as JSON; a text is sent as it is, whatever it holds. */
  readonly body?: object | string;
}

export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  readonly text: string;
}

/** Where calls go. */
export interface Target {
  /** URL without a slash at its end. */
  readonly url: string;
  /** '' for none. */
  readonly key: string;
  /** A key that has ended; none where not given. */
  readonly expiredKey?: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

/** @throws the connection's error; TimeoutError where the answer is not there in time; the signal's reason. */
export async function ask({ url, key, timeoutMs, signal }: Target, { method, path, body }: Call): Promise<Answer> {
  const response = await sendRequest({
    method,
    url: url + path,
    headers: { ...(body !== undefined && { 'content-type': 'application/json' }), ...(key !== '' && bearer(key)) },
    ...(body !== undefined && { body: typeof body === 'string' ? body : JSON.stringify(body) }),
    signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
  });
  return { status: response.statusCode ?? 0, headers: response.headers, text: await textOf(response) };
}

/** The body of an answer. @throws AssertionError unless it is a JSON object. */
export function objectOf({ text }: Pick<Answer, 'text'>): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    assert.fail(`the body is not JSON: ${excerpt(text)}`);
  }
  assert.ok(
    typeof value === 'object' && value !== null && !Array.isArray(value),
    `the body is not an object: ${excerpt(text)}`,
  );
  return value as Record<string, unknown>;
}

/** The code of a refusal; '' where its API has none, as Ollama's. @throws AssertionError where it does not refuse. */
export function codeOf(answer: Answer): string {
  const { error } = objectOf(answer);
  if (typeof error === 'string' && error !== '') return '';
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown };
  assert.ok(typeof code === 'string' && typeof message === 'string', `no code and message: ${excerpt(answer.text)}`);
  return code;
}

/** The data of each event of a stream, in order. */
export function eventsOf({ text }: Pick<Answer, 'text'>): string[] {
  const events: string[] = [];
  createParser({ onEvent: ({ data }) => void events.push(data) }).feed(text);
  return events;
}

const SHOWN = 200;
export const excerpt = (text: string) => (text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text);
