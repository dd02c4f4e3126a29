/**
 * One choice of a completion: token ids in, what the client sees out, the echoed prompt included. It knows neither
 * workers nor HTTP.
 */
import type { FinishReason, SampledToken } from '../../lib/request/next-token.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';
import { characterSteps, characters, Detokenizer, StopStrings } from '../../lib/text/detokenizer.ts';
import { CrlfWriter, toCrlf, usesCrlf } from '../../lib/text/line-ends.ts';
import { leadingIds, prefixSteps } from '../../lib/text/prompt.ts';
import type { PromptFormat } from '../../lib/text/prompt-format.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import type { CompletionRequest, PromptInput } from '../request.ts';
import { CodeEnd, type CodeEndRules } from './code-end.ts';
import { stopIdsOf } from './sampling.ts';

/** A token that could stand at one position, and its logprob there. */
interface Candidate {
  readonly id: number;
  /** The token's own bytes, which need not be whole characters. */
  readonly bytes: Uint8Array;
  readonly logprob: number;
}

/** One token of the text, as the model saw it. */
export interface TokenReport {
  readonly id: number;
  readonly bytes: Uint8Array;
  /** The token itself, then its alternatives; undefined for the first token of a text, which nothing predicts. */
  readonly candidates: readonly [Candidate, ...Candidate[]] | undefined;
  /** Unicode characters of the choice's text before the token's own. */
  readonly textOffset: number;
}

/** The output of some new tokens of one choice. The deltas of a choice, put together, are the whole choice. */
export interface ChoiceDelta {
  /** Index of the prompt within the request, and of the choice within the prompt. */
  readonly prompt: number;
  readonly choice: number;
  /** The echoed prompt included. */
  readonly text: string;
  readonly tokenIds: readonly number[];
  /** Token ids of the prompt; in the first delta only. */
  readonly promptTokenIds: readonly number[] | undefined;
  /** The echoed prompt, whose reports stand before the others; in the first delta only. */
  readonly echo?: Echo | undefined;
  /** One report per token of the output; undefined where the request asks for none. */
  readonly reports: readonly TokenReport[] | undefined;
  readonly finishReason: FinishReason | null;
  /** The stop string that ended the choice; undefined where something else did, or nothing yet. */
  readonly stopString?: string | undefined;
}

export interface ChoiceRules {
  readonly prompt: number;
  readonly choice: number;
  readonly maxTokens: number;
  readonly minTokens: number;
  readonly stop: readonly string[];
  readonly stopIds: ReadonlySet<number>;
  readonly wantLogprobs: boolean;
  readonly bytes: (id: number) => Uint8Array;
  /** Whether a token is left out of the text, as special tokens are. */
  readonly skip: (id: number) => boolean;
  /** The text before the choice, if its lines end in `\r\n`: then those of the choice do, too. */
  readonly crlfAfter: string | undefined;
  /** Where the code of the choice ends; undefined leaves that to the model. */
  readonly codeEnd: CodeEndRules | undefined;
  /** Time after its first token at which the choice ends, once a line end is out, in ms. */
  readonly maxPredictMs: number | undefined;
}

/**
 * The prompt, or the completion's given beginning, as it is given back in front of each of its choices. All of them
 * share one, which makes its reports when they are first read: a prompt may have 100,000 tokens with 6 candidates each.
 */
export class Echo {
  readonly text: string;
  readonly tokens: readonly SampledToken[];
  /** Unicode characters of the text. */
  readonly length: number;
  readonly #bytes: (id: number) => Uint8Array;
  readonly #detokenizer: Detokenizer;
  readonly #reports: TokenReport[] = [];
  /** Unicode characters of the tokens that have been reported. */
  #offset = 0;
  /** Whether the first token has a logprob: tokens stand before it that are not given back. */
  readonly #predicted: boolean;

  /** @param length Unicode characters of the text. */
  constructor(
    text: string,
    length: number,
    tokens: readonly SampledToken[],
    bytes: (id: number) => Uint8Array,
    predicted: boolean,
  ) {
    this.#predicted = predicted;
    this.text = text;
    this.tokens = tokens;
    this.length = length;
    this.#bytes = bytes;
    this.#detokenizer = new Detokenizer(bytes, () => false);
  }

  /** One report per token. */
  *reports(): Generator<TokenReport> {
    for (let i = 0; i < this.tokens.length; i++) {
      if (i === this.#reports.length) this.#reports.push(this.#reportNext(this.tokens[i]!));
      yield this.#reports[i]!;
    }
  }

  #reportNext(token: SampledToken): TokenReport {
    const piece = this.#detokenizer.push(token.id);
    const offset = this.#offset + this.#detokenizer.leftover;
    this.#offset += characters(piece);
    const report = reportOf(token, offset, this.#bytes);
    return this.#reports.length === 0 && !this.#predicted ? { ...report, candidates: undefined } : report;
  }
}

/** @param textOffset of the token's own text, in characters. */
function reportOf(token: SampledToken, textOffset: number, bytes: (id: number) => Uint8Array): TokenReport {
  const candidate = ({ id, logprob = 0 }: SampledToken): Candidate => ({ id, bytes: bytes(id), logprob });
  const candidates = [candidate(token), ...(token.top ?? []).map(candidate)] as const;
  return { id: token.id, bytes: bytes(token.id), candidates, textOffset };
}

export class Choice {
  readonly #rules: ChoiceRules;
  readonly #detokenizer: Detokenizer;
  readonly #crlf: CrlfWriter | undefined;
  readonly #stops: StopStrings;
  readonly #codeEnd: CodeEnd | undefined;
  /** Time of the first token, in ms of the monotonic clock. */
  #firstMs: number | undefined;
  #hasLineEnd = false;
  /** undefined once the first delta has taken them. */
  #promptTokenIds: readonly number[] | undefined;
  #echo: Echo | undefined;
  /** Unicode characters of the text so far, stop strings and text that is held back included. */
  #offset = 0;
  readonly #ids: number[] = [];
  #logprobSum = 0;
  #finish: FinishReason | undefined;

  constructor(rules: ChoiceRules, promptTokenIds: readonly number[]) {
    this.#rules = rules;
    this.#detokenizer = new Detokenizer(rules.bytes, rules.skip);
    this.#crlf = rules.crlfAfter === undefined ? undefined : new CrlfWriter(rules.crlfAfter);
    this.#stops = new StopStrings(this.#crlf ? rules.stop.map(toCrlf) : rules.stop);
    this.#codeEnd = rules.codeEnd && new CodeEnd(rules.codeEnd);
    this.#promptTokenIds = promptTokenIds;
  }

  /** The same choice with nothing in it yet; its time goes on. */
  anew(): Choice {
    const choice = new Choice(this.#rules, []);
    choice.#firstMs = this.#firstMs;
    return choice;
  }

  /** Puts the prompt in front of the first delta. All choices of a prompt share one echo. */
  echo(prompt: Echo): void {
    this.#echo = prompt;
  }

  get finished(): boolean {
    return this.#finish !== undefined;
  }

  /** Output token ids so far. */
  get ids(): readonly number[] {
    return this.#ids;
  }

  /** Mean logprob of the output: the likeliest of several choices has the highest. */
  get meanLogprob(): number {
    return this.#ids.length === 0 ? 0 : this.#logprobSum / this.#ids.length;
  }

  /**
   * Takes new tokens, in order. Those after the one that ends the choice are ignored.
   * It yields before work of more than 1 ms.
   * @param reported finish reason that the worker gives for the last of them.
   */
  *push(tokens: readonly SampledToken[], reported?: FinishReason): Generator<void, ChoiceDelta> {
    const { prompt, choice, maxTokens, wantLogprobs, bytes } = this.#rules;
    const reports: TokenReport[] = [];
    const tokenIds: number[] = [];
    const echo = this.#echo;
    this.#echo = undefined;
    if (echo) this.#offset = echo.length;
    let text = echo?.text ?? '';
    const promptTokenIds = this.#promptTokenIds;
    this.#promptTokenIds = undefined;
    if (maxTokens === 0) this.#finish = 'length';
    for (const token of tokens) {
      if (this.finished) break;
      tokenIds.push(token.id);
      this.#logprobSum += token.logprob ?? 0;
      const piece = this.#detokenizer.push(token.id);
      if (wantLogprobs) reports.push(reportOf(token, this.#offset + this.#detokenizer.leftover, bytes));
      text += yield* this.#take(token.id, this.#crlf?.push(piece) ?? piece);
    }
    if (!this.finished && reported !== undefined) text += yield* this.#end(reported);
    const finishReason = this.#finish ?? null;
    return {
      prompt,
      choice,
      text,
      tokenIds,
      promptTokenIds,
      echo,
      reports: wantLogprobs ? reports : undefined,
      finishReason,
      stopString: this.#stops.found,
    };
  }

  /** The text that can be shown after one more token, which completed `piece`. */
  *#take(id: number, piece: string): Generator<void, string> {
    const { stopIds, maxTokens, minTokens } = this.#rules;
    this.#ids.push(id);
    const count = this.#ids.length;
    this.#offset += characters(piece);
    this.#hasLineEnd ||= piece.includes('\n');
    const mayEnd = count > minTokens;
    const text = mayEnd ? yield* this.#untilCodeEnd(this.#stops.push(piece)) : (this.#codeEnd?.pass(piece) ?? piece);
    if (this.#codeEnd?.stopped) {
      this.#finish = 'stop';
      return text;
    }
    if (this.#stops.stopped || stopIds.has(id)) return text + (yield* this.#end('stop'));
    const isLate = this.#isTimeOver() && mayEnd;
    return isLate || count >= maxTokens ? text + (yield* this.#end('length')) : text;
  }

  *#untilCodeEnd(piece: string): Generator<void, string> {
    return this.#codeEnd ? yield* this.#codeEnd.push(piece) : piece;
  }

  /** Whether the choice has had its time, which counts from its first token, also over replays. */
  #isTimeOver(): boolean {
    const { maxPredictMs } = this.#rules;
    if (maxPredictMs === undefined) return false;
    this.#firstMs ??= performance.now();
    return this.#hasLineEnd && performance.now() - this.#firstMs > maxPredictMs;
  }

  /** Ends the choice. Returns the text that was held back until now. */
  *#end(reason: FinishReason): Generator<void, string> {
    const held = this.#stops.push(this.#detokenizer.end()) + this.#stops.end();
    const text = (yield* this.#untilCodeEnd(held)) + (this.#codeEnd?.end() ?? '');
    this.#finish = this.#stops.stopped || this.#codeEnd?.stopped ? 'stop' : reason;
    return text;
  }
}

/** Tokens at the end of a prompt of ids whose text is read. */
const READ_TOKENS = 1_024;

/** The text before the choices of a prompt, or the end of it. */
export function textBefore(request: CompletionRequest, promptIndex: number, tokenizer: Tokenizer): string {
  const prompt: PromptInput = request.prompts[promptIndex]!;
  return typeof prompt === 'string' ? prompt : tokenizer.decode(prompt.slice(-READ_TOKENS));
}

/**
 * The choices of the prompt at `promptIndex`, with nothing in them yet.
 * @param statements knows the language of the code; undefined where no grammar does.
 */
export function choicesOf(
  request: CompletionRequest,
  promptIndex: number,
  prompt: TokenPrompt,
  tokenizer: Tokenizer,
  format: PromptFormat,
  statements: CodeEndRules['statements'],
): Choice[] {
  const stopIds = new Set(stopIdsOf(request, format));
  const markers = new Set(format.stopIds);
  const promptTokenIds = Array.from(prompt.ids);
  const before = textBefore(request, promptIndex, tokenizer);
  const crlfAfter = usesCrlf(before, request.suffix ?? '') ? before : undefined;
  const { stopAt, indent, maxPredictMs } = request;
  const ends = stopAt !== undefined || indent !== undefined;
  const codeEnd = ends ? { stopAt, indent, before, after: request.suffix ?? '', statements } : undefined;
  return Array.from({ length: request.bestOf }, (_, choice) => {
    const rules = {
      prompt: promptIndex,
      choice,
      maxTokens: request.maxTokens,
      minTokens: request.sampling.minTokens,
      stop: request.stop,
      stopIds,
      wantLogprobs: request.logprobs !== undefined,
      bytes: (id: number) => tokenizer.bytes(id),
      skip: (id: number) => tokenizer.isSpecial(id) || markers.has(id),
      crlfAfter,
      codeEnd,
      maxPredictMs,
    };
    return new Choice(rules, promptTokenIds);
  });
}

/** Tokens that an echo takes between two steps: less than 1 ms. */
const TOKENS_PER_STEP = 1_024;

/**
 * Makes the prompt as it is given back: the client's own text, unless it was truncated. Where the client gave the
 * completion's beginning, that alone is given back. It yields between two steps, since a prompt may have megabytes.
 * @param logprobs one per prompt position, or none.
 */
export function* echoSteps(
  request: CompletionRequest,
  promptIndex: number,
  prompt: TokenPrompt,
  logprobs: readonly SampledToken[],
  tokenizer: Tokenizer,
): Generator<void, Echo> {
  const input = request.prompts[promptIndex]!;
  const { completionPrefix, truncatePromptTokens, addSpecialTokens } = request;
  const begun = yield* prefixSteps(tokenizer, completionPrefix);
  const prompted = typeof input === 'string' && truncatePromptTokens === undefined ? input : undefined;
  const asSent = completionPrefix ?? prompted;
  const leading =
    completionPrefix === undefined
      ? leadingIds(tokenizer, { prompt: input, addSpecialTokens }, false).length
      : prompt.ids.length - begun.length;
  const tokens: SampledToken[] = [];
  for (let i = leading; i < prompt.ids.length; i++) {
    tokens.push({ ...logprobs[i], id: prompt.ids[i]! });
    if (tokens.length % TOKENS_PER_STEP === 0) yield;
  }
  const text = asSent ?? (yield* tokenizer.decodeSteps(prompt.ids.subarray(leading)));
  const length = yield* characterSteps(text);
  return new Echo(text, length, tokens, (id) => tokenizer.bytes(id), begun.length > 0);
}
