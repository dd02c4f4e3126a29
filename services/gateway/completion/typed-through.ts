/**
 * Finds the stream that a new request goes on with: that of an earlier one whose prompt, with a part of what came out
 * for it, is the new prompt. That is what happens when somebody types what an editor suggests.
 *
 * The tokens decide, not the text. The new prompt has to be, token for token, the old one with the first tokens of its
 * output where they stand now: at the end, or in fill-in-the-middle at the end of the text before the cursor. Text that
 * was typed up to the middle of a token, or that is divided into tokens in another way, gives a new computation.
 *
 * When the answer is the one that a new computation would give:
 *   - A greedy prompt without fill-in-the-middle: always. The model has seen the same tokens in the same places.
 *   - A sampled one without a seed: its distribution is the same. What was typed is given, and each draw after it
 *     depends on the tokens before it alone. The stream is then given to one request only, since two would be equal.
 *   - A sampled one with a seed: never, since draws depend on (seed, output position), and the position counts from the
 *     new prompt. Nor with penalties or min_tokens, which count the output.
 *   - Fill-in-the-middle: the tokens move from behind the marker of the middle to the text before the cursor. A model
 *     that is sure answers the same. Within a session a suggestion is to stay while it is typed, and so streams are
 *     shared there, and there only; `--typed-through exact` does without.
 *
 * A stream that nobody reads any more may go on for a while: see {@link Lingering}.
 */

import { TenantCache } from '../../lib/rag/store/tenant-cache.ts';
import type { SampledToken, Sampling } from '../../lib/request/next-token.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';
import { formOf, type PromptFormat } from '../../lib/text/prompt-format.ts';
import { hashOf, sessionOf } from '../context/sessions.ts';
import type { CompletionRequest } from '../request.ts';
import { Lingering, type LingeringParts } from './lingering.ts';
import type { PromptTask } from './preparation.ts';
import type { CompletionConfig } from './settings.ts';
import { type StreamStart, TokenStream } from './token-stream.ts';

export interface TypedThroughParts extends LingeringParts, Pick<CompletionConfig, 'typedThrough' | 'promptOrder'> {
  readonly format: Pick<PromptFormat, 'forms'>;
}

/** A stream that a request goes on with, from its token number `from`. */
export interface Found {
  readonly stream: TokenStream;
  readonly from: number;
}

/** Size of all streams: 8,000 of 2,000 prompt tokens and 64 output tokens. */
const LIMIT_BYTES = 128 << 20;
/** Time for which a stream is kept that nobody goes on with, in ms: a suggestion is typed, taken or left by then. */
const KEEP_MS = 120_000;
/** Size of a stream besides its tokens; of a token of the output, and again of each alternative to it. */
const OVERHEAD_BYTES = 1_024;
const TOKEN_BYTES = 96;
/** Streams that are kept of a session, or of prompts that begin alike: the last few keystrokes. */
const MOST_ALIKE = 8;
/** Tokens by which prompts that begin alike are found; shorter prompts are kept together. */
const BEGINNING = 16;

export class TypedThrough {
  readonly #parts: TypedThroughParts;
  readonly #streams: TenantCache<readonly TokenStream[]>;
  readonly #taken = new WeakSet<TokenStream>();
  readonly #lingering: Lingering;

  /** @param limitBytes memory for all streams; each tenant has a share of it. */
  constructor(parts: TypedThroughParts, limitBytes = LIMIT_BYTES) {
    this.#parts = parts;
    this.#streams = new TenantCache(limitBytes, KEEP_MS);
    this.#lingering = new Lingering(parts);
  }

  /** Whether the output of a request can be found by others, and it can find theirs. */
  takesPart({ request }: PromptTask): boolean {
    const { prompts, bestOf, echo, maxTokens, sampling, seed } = request;
    const counts = sampling.frequencyPenalty !== 0 || sampling.presencePenalty !== 0 || sampling.minTokens > 0;
    const isOne = prompts.length === 1 && bestOf === 1 && !echo && maxTokens > 0;
    return this.#parts.typedThrough !== 'off' && isOne && !counts && (isGreedy(sampling) || seed === undefined);
  }

  /** The stream that a request can go on with. Others of its session that went on for it are ended. */
  find(task: PromptTask): Found | undefined {
    const { keys, beginnings } = this.#keysOf(task);
    const streams = [...keys, ...beginnings].flatMap((key) => this.#streams.get(key) ?? []);
    const found = streams.map((stream) => this.#match(stream, task)).find((match) => match !== undefined);
    for (const stream of keys.flatMap((key) => this.#streams.peek(key) ?? [])) {
      if (stream !== found?.stream) this.#lingering.end(stream);
    }
    if (found && !isGreedy(task.request.sampling)) this.#taken.add(found.stream);
    return found;
  }

  /**
   * The stream into which the output of a request goes.
   * @param tokens output that it has already.
   */
  open(task: PromptTask, tokens: readonly SampledToken[]): TokenStream {
    const { request, prompt, samplings } = task;
    const { stopTokenIds } = samplings[0]!;
    const onUnread: StreamStart['onUnread'] = (...left) => this.#lingering.goesOn(...left);
    const start = { prompt, maxTokens: request.maxTokens, stopIds: stopTokenIds, tokens, onUnread };
    const stream = new TokenStream(start);
    const { keys, beginnings } = this.#keysOf(task);
    for (const key of [...keys, ...beginnings.slice(0, 1)]) {
      const alike = [stream, ...(this.#streams.peek(key) ?? [])].slice(0, MOST_ALIKE);
      const ofPrompts = alike.reduce((sum, each) => sum + bytesOf(each.prompt), 0);
      const ofOutput = request.maxTokens * TOKEN_BYTES * (2 + (request.logprobs ?? 0));
      this.#streams.set(key, alike, ofPrompts + alike.length * ofOutput);
    }
    return stream;
  }

  #match(stream: TokenStream, { request, prompt }: PromptTask): Found | undefined {
    if (this.#taken.has(stream)) return undefined;
    const from = prompt.ids.length - stream.prompt.ids.length;
    // Typed past the end of what there is, there is nothing to go on with.
    if (from < 1 || from > stream.ids.length || (from === stream.ids.length && stream.over)) return undefined;
    if (!sameSoft(stream.prompt, prompt)) return undefined;
    const at = request.suffix === undefined ? stream.prompt.ids.length : this.#cursorOf(stream.prompt.ids);
    const old = stream.prompt.ids;
    const typed = stream.ids;
    const same = prompt.ids.every((id, i) => {
      if (i < at) return id === old[i];
      return id === (i < at + from ? typed[i - at] : old[i - from]);
    });
    return same ? { stream, from } : undefined;
  }

  /** Where the text before the cursor ends in a prompt for fill-in-the-middle. */
  #cursorOf(ids: Int32Array): number {
    const form = formOf(this.#parts.format, this.#parts.promptOrder) ?? [];
    const next = form[form.indexOf('left') + 1];
    return typeof next === 'number' ? ids.lastIndexOf(next) : ids.length;
  }

  /**
   * The keys under which streams are kept: those of the session, and those of prompts that begin alike, the prompt's
   * own first. Streams of another tenant, another salt or other parameters have other keys.
   */
  #keysOf({ request, scope, prompt }: PromptTask): { keys: string[]; beginnings: string[] } {
    const parameters = parametersOf(request);
    const key = (...parts: unknown[]) => `${scope.tenant}:${hashOf([scope.tenant, ...parts, parameters])}`;
    const session = sessionOf(request, scope.tenant);
    const keys = session === undefined || !this.#sharesInSession(request) ? [] : [key('session', session)];
    if (request.suffix !== undefined) return { keys, beginnings: [] };
    const own = prompt.ids.length < BEGINNING ? [] : [key('beginning', [...prompt.ids.subarray(0, BEGINNING)])];
    return { keys, beginnings: [...own, key('short')] };
  }

  #sharesInSession({ suffix }: CompletionRequest): boolean {
    return suffix === undefined || this.#parts.typedThrough === 'session';
  }
}

const isGreedy = ({ temperature }: Pick<Sampling, 'temperature'>) => temperature === 0;

/** What decides the tokens of an output besides its prompt; a seed decides nothing where none is drawn. */
function parametersOf({ sampling, ignoreEos, logprobs, cacheSalt, suffix }: CompletionRequest): unknown[] {
  const { temperature, topP, topK, minP, logitBias, stopTokenIds } = sampling;
  const drawn = temperature === 0 ? [0] : [temperature, topP, topK, minP];
  const reported = [logprobs ?? null, sampling.logprobs];
  return [drawn, [...logitBias], stopTokenIds, ignoreEos, reported, cacheSalt ?? null, suffix === undefined];
}

const bytesOf = ({ ids, soft }: TokenPrompt) => OVERHEAD_BYTES + ids.byteLength + soft.vectors.byteLength;

function sameSoft({ soft: a }: TokenPrompt, { soft: b }: TokenPrompt): boolean {
  const equal = (x: Int32Array | Float32Array, y: Int32Array | Float32Array) =>
    x === y || (x.length === y.length && x.every((value, i) => value === y[i]));
  return equal(a.positions, b.positions) && equal(a.vectors, b.vectors);
}
