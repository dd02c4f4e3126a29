/** What an evaluation asks a running system for: completions, and log-probabilities of texts that are given. */
import { text as textOf } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { type CompletionBody, refusal, type StreamedCompletion, streamCompletion } from '../../services/client.ts';
import { bearer, sendRequest } from '../../services/http-call.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { reasonOf } from '../../services/lib/process/os-errors.ts';

interface ClientSettings {
  readonly url: string;
  readonly apiKey: string | undefined;
  /** Of one request, in ms. */
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

/** How often a request is sent again after a failure that may pass, and the first pause before that, in ms. */
const REPEATS = 4;
const PAUSE_MS = 500;

const chatSchema = z.object({
  choices: z.array(z.object({ message: z.object({ content: z.string().nullable() }) })).min(1),
});

const answerSchema = z.object({
  system_fingerprint: z.string().optional(),
  choices: z
    .array(
      z.object({
        text: z.string(),
        logprobs: z.object({ token_logprobs: z.array(z.number().nullable()) }).nullish(),
      }),
    )
    .min(1),
});

const modelsSchema = z.object({
  data: z.array(z.object({ id: z.string().optional(), max_model_len: z.number().nullish() })),
});

const CHAT = '/v1/chat/completions';

export class QualityClient {
  readonly #settings: ClientSettings;

  constructor(settings: ClientSettings) {
    this.#settings = { ...settings, url: settings.url.replace(/\/+$/, '') };
  }

  /** @throws ServingError with the server's code; the signal's reason. */
  complete(body: CompletionBody): Promise<StreamedCompletion> {
    const { url, apiKey } = this.#settings;
    return this.#repeated((signal) => streamCompletion(url, body, signal, { apiKey }));
  }

  /**
   * What a model that follows instructions answers to one message.
   * @param model undefined where the server has but one
   * @param maxTokens by the server's own tokenizer
   * @returns the answer; '' where the model gave none, such as one whose thoughts took all tokens
   * @throws as {@link complete}.
   */
  async chat(message: string, model: string | undefined, maxTokens: number): Promise<string> {
    const messages = [{ role: 'user', content: message }];
    const body = JSON.stringify({
      ...(model !== undefined && { model }),
      messages,
      max_tokens: maxTokens,
      temperature: 0,
    });
    const answer = await this.#repeated((signal) => this.#call('POST', CHAT, body, chatSchema, signal));
    return answer.choices[0]!.message.content ?? '';
  }

  /**
   * Natural logarithms of the probability of each token of the prompt, or of the completion's beginning alone where
   * the body gives one; null for a token that nothing predicts.
   * @returns them, and the fingerprint of the bundle that is served
   * @throws as {@link complete}.
   */
  async logprobs(
    body: Omit<CompletionBody, 'max_tokens'> & { readonly completion_prefix?: string },
  ): Promise<{ readonly logprobs: readonly (number | null)[]; readonly fingerprint: string | undefined }> {
    const { choices, system_fingerprint: fingerprint } = await this.#post({
      ...body,
      max_tokens: 0,
      echo: true,
      logprobs: 0,
    });
    return { logprobs: choices[0]!.logprobs?.token_logprobs ?? [], fingerprint };
  }

  /** Tokens that a request may have, prompt and output together; undefined where the system does not say. */
  async capacity(): Promise<number | undefined> {
    return (await this.#models())[0]?.max_model_len ?? undefined;
  }

  /** The first model that the server names; undefined where it names none. */
  async firstModel(): Promise<string | undefined> {
    return (await this.#models())[0]?.id;
  }

  async #models(): Promise<z.output<typeof modelsSchema>['data']> {
    const call = (signal: AbortSignal) => this.#call('GET', '/v1/models', undefined, modelsSchema, signal);
    return (await this.#repeated(call)).data;
  }

  #post(body: object): Promise<z.output<typeof answerSchema>> {
    return this.#repeated((signal) =>
      this.#call('POST', '/v1/completions', JSON.stringify(body), answerSchema, signal),
    );
  }

  async #call<T>(
    method: 'GET' | 'POST',
    path: string,
    body: string | undefined,
    schema: z.ZodType<T>,
    signal: AbortSignal,
  ): Promise<T> {
    const { url, apiKey } = this.#settings;
    const type: Record<string, string> = body === undefined ? {} : { 'content-type': 'application/json' };
    const response = await sendRequest({
      method,
      url: `${url}${path}`,
      headers: { ...type, ...bearer(apiKey) },
      ...(body !== undefined && { body }),
      signal,
    });
    const text = await textOf(response);
    if (response.statusCode !== 200) throw refusal(text, response.statusCode ?? 0);
    const parsed = schema.safeParse(parsedJson(text));
    if (parsed.success) return parsed.data;
    throw new ServingError(
      'address_unusable',
      `${url}${path} answered, but not as OpenAI's API does: ${text.slice(0, 200)}`,
    );
  }

  /** Asks again after failures that may pass, and says which address does not answer. */
  async #repeated<T>(ask: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { url, timeoutMs, signal } = this.#settings;
    for (let tries = 0; ; tries++) {
      const timeout = AbortSignal.timeout(timeoutMs);
      try {
        return await ask(AbortSignal.any([signal, timeout]));
      } catch (error) {
        signal.throwIfAborted();
        const failure = failureOf(error, url, timeout.aborted ? timeoutMs : undefined);
        if (!failure.kind.retryable || tries === REPEATS) throw failure;
        await sleep(PAUSE_MS * 2 ** tries, undefined, { signal });
      }
    }
  }
}

function failureOf(error: unknown, url: string, timeoutMs: number | undefined): ServingError {
  if (timeoutMs !== undefined) {
    const message = `${url} did not answer within --timeout-ms ${timeoutMs}`;
    return new ServingError('deadline_exceeded', message, { cause: error });
  }
  if (error instanceof ServingError) return error;
  return new ServingError('worker_lost', `${url}: ${reasonOf(error)}`, { cause: error });
}

function parsedJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
