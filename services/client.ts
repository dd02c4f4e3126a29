/**
 * A client of the completions API that notes when each chunk comes, for the demo and the benches, and what clients of
 * a gateway make of its failures. Time to first token counts from sending the request to the first chunk that holds a
 * choice, as vLLM's `bench serve` counts it.
 */
import { readFile } from 'node:fs/promises';
import { text as textOf } from 'node:stream/consumers';
import { createParser } from 'eventsource-parser';
import { bearer, sendRequest } from './http-call.ts';
import { isErrorCode, ServingError } from './lib/process/errors.ts';
import { atPath, reasonOf } from './lib/process/os-errors.ts';

/** The body of POST /v1/completions, as far as this client uses it. */
export interface CompletionBody {
  readonly prompt: string | readonly number[];
  readonly suffix?: string;
  readonly max_tokens: number;
  readonly temperature?: number;
  readonly seed?: number;
  readonly stop?: readonly string[];
  readonly stop_at?: string;
  readonly language?: string;
  readonly ignore_eos?: boolean;
  readonly min_tokens?: number;
  readonly return_token_ids?: boolean;
  readonly frequency_penalty?: number;
  readonly session?: string;
  readonly prediction?: { readonly type: 'content'; readonly content: string };
  readonly cache_salt?: string;
  readonly rag?: {
    readonly repo: string;
    readonly mode: string;
    readonly path?: string;
    readonly top_k?: number;
    readonly file_tokens?: number;
    readonly max_text_tokens?: number;
    readonly text_chunks?: number;
  };
}

export interface RagAnswer {
  readonly mode: string;
  readonly chunks: readonly {
    readonly path: string;
    readonly start_line: number;
    readonly end_line: number;
    readonly score: number;
    readonly form?: 'soft' | 'text';
  }[];
  readonly files?: readonly { path: string }[];
  readonly index_version: string | null;
  readonly degraded?: string;
}

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly prompt_tokens_details?: { readonly cached_tokens: number; readonly soft_tokens: number };
}

/** One streamed completion. All times are in ms of this process's monotonic clock. */
export interface StreamedCompletion {
  readonly id: string;
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly finishReason: string;
  readonly usage: Usage;
  readonly rag: RagAnswer | undefined;
  /** The gateway's timeline: ms since it received the request, by event and stage; undefined if not asked for. */
  readonly timeline: Readonly<Record<string, number>> | undefined;
  readonly sentAtMs: number;
  /** One per chunk that held a choice. */
  readonly chunksAtMs: readonly number[];
  readonly endedAtMs: number;
}

interface Chunk {
  readonly id: string;
  readonly choices: readonly { index?: number; text: string; finish_reason: string | null; token_ids?: number[] }[];
  readonly usage?: Usage;
  readonly rag?: RagAnswer;
  readonly timeline?: Readonly<Record<string, number>>;
  readonly error?: { message: string; code: string };
}

export interface StreamOptions {
  /** The API key that the request carries, where the gateway asks for one. */
  readonly apiKey?: string | undefined;
  /** Asks the gateway for its timeline of the request. */
  readonly timeline?: boolean;
  /** Further headers, such as `traceparent`. */
  readonly headers?: Readonly<Record<string, string>>;
  /**
   * Called for each chunk that holds a choice, as it comes, with its time, token ids and the choice's index: so that
   * they are known even if the stream breaks off.
   */
  readonly onChunk?: (atMs: number, tokenIds: readonly number[], choice: number) => void;
}

/**
 * Sends one request and reads its stream to the end.
 * @throws ServingError with the server's code; worker_lost when the stream breaks off; the signal's reason.
 */
export async function streamCompletion(
  url: string,
  body: CompletionBody,
  signal: AbortSignal,
  options: StreamOptions = {},
): Promise<StreamedCompletion> {
  const sentAtMs = performance.now();
  signal.throwIfAborted();
  const response = await sendRequest({
    method: 'POST',
    url: `${url}/v1/completions`,
    headers: {
      'content-type': 'application/json',
      ...(options.timeline && { 'x-llavacode-timeline': '1' }),
      ...bearer(options.apiKey),
      ...options.headers,
    },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const status = response.statusCode ?? 0;
  if (status !== 200) throw refusal(await textOf(response), status);
  const chunksAtMs: number[] = [];
  const tokenIds: number[] = [];
  let [id, text, finishReason, done] = ['', '', '', false];
  let usage: Usage | undefined;
  let rag: RagAnswer | undefined;
  let timeline: StreamedCompletion['timeline'];
  let failure: ServingError | undefined;
  const parser = createParser({
    onEvent: ({ data }) => {
      if (data === '[DONE]') {
        done = true;
        return;
      }
      const chunk = JSON.parse(data) as Chunk;
      if (chunk.error) failure = refusal(data, 200);
      id ||= chunk.id;
      rag ??= chunk.rag;
      usage = chunk.usage ?? usage;
      timeline = chunk.timeline ?? timeline;
      const choice = chunk.choices?.[0];
      if (choice === undefined) return;
      const atMs = performance.now();
      chunksAtMs.push(atMs);
      options.onChunk?.(atMs, choice.token_ids ?? [], choice.index ?? 0);
      text += choice.text;
      tokenIds.push(...(choice.token_ids ?? []));
      finishReason = choice.finish_reason ?? finishReason;
    },
  });
  const decoder = new TextDecoder();
  try {
    for await (const bytes of response) parser.feed(decoder.decode(bytes as Uint8Array, { stream: true }));
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  }
  if (failure) throw failure;
  if (!done || usage === undefined) throw new ServingError('worker_lost', 'the stream ended without [DONE]');
  const endedAtMs = performance.now();
  return { id, text, tokenIds, finishReason, usage, rag, timeline, sentAtMs, chunksAtMs, endedAtMs };
}

/** Time to first token, in ms. */
export const ttftMs = (done: StreamedCompletion) => (done.chunksAtMs[0] ?? done.endedAtMs) - done.sentAtMs;

/** Time per output token, in ms: (last - first) / (output tokens - 1); undefined for one token. */
export function tpotMs(done: StreamedCompletion): number | undefined {
  const tokens = done.usage.completion_tokens;
  const [first, last] = [done.chunksAtMs[0], done.chunksAtMs.at(-1)];
  return tokens < 2 || first === undefined || last === undefined ? undefined : (last - first) / (tokens - 1);
}

/** The failure that an answer reports. */
export function refusal(text: string, status: number): ServingError {
  try {
    const { error } = JSON.parse(text) as { error: { message: string; code: string } };
    return new ServingError(isErrorCode(error.code) ? error.code : 'internal', error.message);
  } catch {
    return new ServingError('internal', `HTTP ${status}: ${text.slice(0, 200)}`);
  }
}

/**
 * The failure that whatever answers at `--url` reports, without the remedy in its message: the command line and editors
 * add that themselves. What does not answer as a gateway does is `address_unusable`.
 */
export function refusalAt(url: string, text: string, status: number): ServingError {
  const failure = refusal(text, status);
  if (failure.code === 'internal' && !text.includes('"code"')) {
    const message = `--url ${url} answered HTTP ${status}, but not as a LlavaCode gateway does: ${text.slice(0, 200)}`;
    return new ServingError('address_unusable', message);
  }
  const said = failure.message.replace(failure.kind.remedy, '').replace(/[. ]+$/, '');
  const hint = failure.code === 'invalid_api_key' ? ' (--api-key, LLAVACODE_API_KEY or --api-key-file)' : '';
  return new ServingError(failure.code, `${said}${hint}`);
}

/** Nothing answers at `--url`. @param otherwise what else the user could do, as the end of the message. */
export function unreachable(url: string, cause: unknown, otherwise = ''): ServingError {
  const message =
    `--url ${url}: no gateway answers there: ${reasonOf(cause)}. Start one with llavacode up, ` +
    `${otherwise === '' ? 'or ' : ''}name another one with --url${otherwise}`;
  return new ServingError('address_unusable', message, { cause });
}

/** The key of a client, given itself or by a file; '' for none. @throws ServingError path_unusable. */
export async function apiKeyOf({ apiKey, apiKeyFile }: { apiKey: string; apiKeyFile: string }): Promise<string> {
  if (apiKey !== '' || apiKeyFile === '') return apiKey;
  return (await atPath(`--api-key-file ${apiKeyFile}`, () => readFile(apiKeyFile, 'utf8'))).trim();
}
