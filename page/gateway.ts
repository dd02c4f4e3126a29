/**
 * The gateway as the page asks it. Addresses are relative to the page, so that a proxy may put the gateway under a path
 * of its own. The key stays in this tab: it is in no address and no cookie.
 */
import { createParser } from 'eventsource-parser';
import type { LiveBody } from '../services/gateway/http/admin-answers.ts';

const KEY = 'llavacode-key';

const storedKey = (): string => sessionStorage.getItem(KEY) ?? '';
export const storeKey = (key: string): void => sessionStorage.setItem(KEY, key);
export const hasKey = (): boolean => storedKey() !== '';
export const forgetKey = (): void => sessionStorage.removeItem(KEY);

/** Headers hold bytes: those of the key's UTF-8, of which the file of keys has the hash. */
const asHeader = (key: string): string => String.fromCharCode(...new TextEncoder().encode(key));

/** What the gateway refused, in its own words. */
export class Refusal extends Error {
  /** HTTP status. */
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }

  /** Whether another key could help. */
  get needsKey(): boolean {
    return this.status === 401 || this.status === 403;
  }
}

/** @throws Refusal; whatever fetch throws where nothing answers. */
async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const key = storedKey();
  const headers = { ...init.headers, ...(key !== '' && { authorization: `Bearer ${asHeader(key)}` }) };
  const response = await fetch(path, { ...init, headers, cache: 'no-store', credentials: 'omit' });
  if (response.ok) return response;
  throw new Refusal(response.status, messageIn(await response.text()) ?? `HTTP ${response.status}`);
}

function messageIn(text: string): string | undefined {
  try {
    return (JSON.parse(text) as { error?: { message?: string } }).error?.message;
  } catch {
    return undefined;
  }
}

export async function getJson<T>(path: string, signal: AbortSignal): Promise<T> {
  return (await (await ask(path, { signal })).json()) as T;
}

/** Calls `onData` with the data of each event of a stream, to its end. @throws Refusal of an event that is an error. */
async function readEvents(response: Response, onData: (data: unknown) => void): Promise<void> {
  const parser = createParser({
    onEvent: ({ data }) => {
      if (data === '[DONE]') return;
      const value = JSON.parse(data) as { error?: { message: string } };
      if (value.error) throw new Refusal(200, value.error.message);
      onData(value);
    },
  });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) parser.feed(part.value);
}

/** Live state, until the gateway ends the stream: it does so after ten minutes, and when it drains. @throws Refusal */
export async function followLive(signal: AbortSignal, onLive: (live: LiveBody) => void): Promise<void> {
  await readEvents(await ask('api/live', { signal }), (value) => onLive(value as LiveBody));
}

export type ContextMode = 'off' | 'text' | 'compressed';

/** One completion of the playground. */
export interface Played {
  readonly text: string;
  readonly chunks: readonly { path: string; start_line: number; end_line: number; score: number }[];
  /** Why the context is not all that was asked for. */
  readonly degraded: string | undefined;
  readonly promptTokens: number;
  readonly softTokens: number;
  readonly completionTokens: number;
  /** By the gateway's clock, from the request's last byte to the first token, in ms. */
  readonly ttftMs: number;
  /** Between two tokens on average, in ms; undefined where there is one. */
  readonly tpotMs: number | undefined;
}

interface Part {
  readonly choices?: readonly { readonly text: string }[];
  readonly rag?: { readonly chunks: Played['chunks']; readonly degraded?: string };
  readonly usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    prompt_tokens_details?: { soft_tokens?: number };
  } | null;
  readonly timeline?: Readonly<Record<string, number>>;
}

/** Completes at the cursor by the public API. @throws Refusal */
export async function complete(body: object, signal: AbortSignal): Promise<Played> {
  const response = await ask('../v1/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-llavacode-timeline': '1' },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let text = '';
  let rag: Part['rag'];
  let usage: Part['usage'];
  let timeline: Part['timeline'];
  await readEvents(response, (value) => {
    const part = value as Part;
    text += part.choices?.[0]?.text ?? '';
    rag ??= part.rag;
    usage = part.usage ?? usage;
    timeline = part.timeline ?? timeline;
  });
  const { first_token: first = Number.NaN, last_token: last = Number.NaN } = timeline ?? {};
  const tokens = usage?.completion_tokens ?? 0;
  return {
    text,
    chunks: rag?.chunks ?? [],
    degraded: rag?.degraded,
    promptTokens: usage?.prompt_tokens ?? 0,
    softTokens: usage?.prompt_tokens_details?.soft_tokens ?? 0,
    completionTokens: tokens,
    ttftMs: first,
    tpotMs: tokens > 1 ? (last - first) / (tokens - 1) : undefined,
  };
}
