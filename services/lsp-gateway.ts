/** The system that completes in an editor, behind a running gateway: completions, and what became of them. */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { text as textOf } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { refusalAt, unreachable } from './client.ts';
import { bearer, sendRequest } from './http-call.ts';
import { ServingError } from './lib/process/errors.ts';
import { reasonOf } from './lib/process/os-errors.ts';
import type { Outcome } from './lsp/ghost-text.ts';
import type { CompletionAnswer, CompletionQuery } from './lsp/query.ts';
import type { LspCommandConfig } from './settings.ts';

export interface LspGatewayParts
  extends Pick<LspCommandConfig, 'url' | 'ragMode' | 'completionTokens' | 'completionTimeoutMs'> {
  /** '' for a gateway without keys. */
  readonly apiKey: string;
  /** Told what the gateway does not know how to do. */
  readonly note: (text: string) => void;
}

/** What is read of an answer; more may stand there. */
const answer = z.object({
  id: z.string(),
  choices: z.array(z.object({ text: z.string() })).min(1),
  rag: z.object({ chunks: z.array(z.unknown()), degraded: z.string().optional() }).optional(),
});

/** Fields that gateways before this version refuse. */
const NEWER_FIELDS = ['stop_at', 'language', 'rag.files'] as const;
type NewerField = (typeof NEWER_FIELDS)[number];

/** Where a completion ends if the gateway does not know blocks: before an empty line. */
const BLOCK_END = '\n\n';
/** Reports that wait to be sent; further ones are dropped. */
const MAX_REPORTS = 64;
/** Time that a report may take, in ms. */
const REPORT_TIMEOUT_MS = 5_000;

export class LspGateway {
  readonly #parts: LspGatewayParts;
  readonly #base: string;
  /** A newer request of the same session takes the place of an older one in the gateway, too. */
  readonly #session = randomUUID();
  /** Fields that the gateway has refused: it is not asked again before this process starts anew. */
  readonly #refused = new Set<NewerField>();
  /** Reports are sent one after the other, so that they arrive in their order. */
  #reports: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #takesReports = true;

  constructor(parts: LspGatewayParts) {
    this.#parts = parts;
    this.#base = parts.url.replace(/\/+$/, '');
  }

  /**
   * A repository that the gateway does not know is left out; the answer says so.
   * @throws ServingError with the gateway's code; address_unusable, worker_lost, deadline_exceeded; the signal's
   *   reason.
   */
  async complete(query: CompletionQuery, signal: AbortSignal): Promise<CompletionAnswer> {
    const limitMs = this.#parts.completionTimeoutMs;
    const late = AbortSignal.timeout(limitMs);
    try {
      return await this.#completeWithin(query, AbortSignal.any([signal, late]));
    } catch (error) {
      signal.throwIfAborted();
      if (!late.aborted) throw error;
      throw new ServingError('deadline_exceeded', `no completion came within --completion-timeout-ms = ${limitMs}`);
    }
  }

  async #completeWithin(query: CompletionQuery, signal: AbortSignal): Promise<CompletionAnswer> {
    try {
      return await this.#completeAsKnown(query, signal);
    } catch (error) {
      if (!(error instanceof ServingError) || error.code !== 'repo_not_found') throw error;
      return { ...(await this.#completeAsKnown({ ...query, context: undefined }, signal)), degraded: error.code };
    }
  }

  /** Leaves out what the gateway says that it does not know. */
  async #completeAsKnown(query: CompletionQuery, signal: AbortSignal): Promise<CompletionAnswer> {
    for (;;) {
      try {
        const response = await this.#post('/v1/completions', this.#bodyOf(query), signal);
        return this.#answerOf(await this.#textOf(response, signal));
      } catch (error) {
        if (!(error instanceof ServingError) || error.code !== 'invalid_request') throw error;
        const { message } = error;
        const unknown = NEWER_FIELDS.filter(
          (field) => !this.#refused.has(field) && message.includes(`${field}: is not a field of this request`),
        );
        if (unknown.length === 0) throw error;
        for (const field of unknown) this.#refused.add(field);
        this.#parts.note(`the gateway is older than this program, and does not know ${unknown.join(', ')}`);
      }
    }
  }

  #bodyOf({ prompt, suffix, language, context }: CompletionQuery): object {
    const { ragMode, completionTokens, completionTimeoutMs } = this.#parts;
    const takes = (field: NewerField) => !this.#refused.has(field);
    const searches = context !== undefined && ragMode !== 'off';
    return {
      prompt,
      ...(suffix !== '' && { suffix }),
      max_tokens: completionTokens,
      temperature: 0,
      session: this.#session,
      timeout_ms: completionTimeoutMs,
      ...(takes('stop_at') ? { stop_at: 'block' } : { stop: [BLOCK_END] }),
      // Otherwise the path tells.
      ...(!searches && takes('language') && { language }),
      ...(searches && {
        rag: {
          repo: context.repo,
          mode: ragMode,
          path: context.path,
          ...(takes('rag.files') && context.files.length > 0 && { files: context.files }),
        },
      }),
    };
  }

  #answerOf(text: string): CompletionAnswer {
    try {
      const { id, choices, rag } = answer.parse(JSON.parse(text));
      return { id, text: choices[0]!.text, chunks: rag?.chunks.length ?? 0, degraded: rag?.degraded };
    } catch (cause) {
      const message = `--url ${this.#parts.url} does not answer as a LlavaCode gateway does: ${text.slice(0, 200)}`;
      throw new ServingError('address_unusable', message, { cause });
    }
  }

  /** Choice 0 is the only one that is asked for. */
  report(id: string, outcome: Outcome): void {
    if (!this.#takesReports || this.#waiting >= MAX_REPORTS) return;
    this.#waiting++;
    const body = { type: outcome, completion_id: id, choice_index: 0 };
    const send = async () => {
      try {
        if (!this.#takesReports) return;
        const signal = AbortSignal.timeout(REPORT_TIMEOUT_MS);
        (await this.#post('/v1/events', body, signal)).resume();
      } catch (error) {
        if (!(error instanceof ServingError) || error.code !== 'not_found') return; // it would have been counted only
        this.#takesReports = false;
        this.#parts.note('the gateway is older than this program, and does not count what became of completions');
      } finally {
        this.#waiting--;
      }
    };
    this.#reports = this.#reports.then(send);
  }

  async reported(): Promise<void> {
    await Promise.race([this.#reports, delay(REPORT_TIMEOUT_MS, undefined, { ref: false })]);
  }

  async #post(route: string, body: object, signal: AbortSignal): Promise<IncomingMessage> {
    const { url, apiKey, completionTimeoutMs: silenceMs } = this.#parts;
    const headers = { 'content-type': 'application/json', ...bearer(apiKey || undefined) };
    const call = { method: 'POST' as const, url: `${this.#base}${route}`, headers, body: JSON.stringify(body) };
    let response: IncomingMessage;
    try {
      response = await sendRequest({ ...call, signal, silenceMs });
    } catch (cause) {
      signal.throwIfAborted();
      throw unreachable(url, cause);
    }
    const status = response.statusCode ?? 0;
    if (status >= 200 && status <= 299) return response;
    const { code, message } = refusalAt(url, await this.#textOf(response, signal), status);
    const wait = Number(response.headers['retry-after']);
    throw new ServingError(code, message, wait > 0 ? { retryAfterSeconds: wait } : {});
  }

  async #textOf(response: IncomingMessage, signal: AbortSignal): Promise<string> {
    try {
      return await textOf(response);
    } catch (cause) {
      signal.throwIfAborted();
      const message = `the answer of ${this.#parts.url} broke off: ${reasonOf(cause)}`;
      throw new ServingError('worker_lost', message, { cause });
    }
  }
}
