/** One choice of a completion: token ids in, what the client sees out. Knows nothing of workers or HTTP. */
import type { FinishReason, SampledToken } from '../../lib/request/next-token.ts';
import { Detokenizer, StopStrings } from '../../lib/text/detokenizer.ts';

/** OpenAI's logprobs of a stretch of tokens; offsets count Unicode characters from the start of the choice's text. */
export interface Logprobs {
  readonly tokens: string[];
  readonly token_logprobs: (number | null)[];
  readonly top_logprobs: (Record<string, number> | null)[];
  readonly text_offset: number[];
}

/** What came of some new tokens of one choice. Deltas of a choice, put together, are the whole of it. */
export interface ChoiceDelta {
  /** Index of the prompt within the request, and of the choice within the prompt. */
  readonly prompt: number;
  readonly choice: number;
  readonly text: string;
  readonly tokenIds: readonly number[];
  /** Of the prompt; in the first delta only. */
  readonly promptTokenIds: readonly number[] | undefined;
  readonly logprobs: Logprobs | null;
  readonly finishReason: FinishReason | null;
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
  /** Whether a token is no text. */
  readonly skip: (id: number) => boolean;
}

/** The prompt, given back in front of a choice. */
export interface Echo {
  readonly text: string;
  readonly tokens: readonly SampledToken[];
}

export class Choice {
  readonly #rules: ChoiceRules;
  readonly #detokenizer: Detokenizer;
  readonly #stops: StopStrings;
  /** Until the first delta has taken them. */
  #promptTokenIds: readonly number[] | undefined;
  #echo: Echo | undefined;
  /** Unicode characters of the text so far, stop strings and what is held back included. */
  #offset = 0;
  readonly #ids: number[] = [];
  #logprobSum = 0;
  #finish: FinishReason | undefined;

  constructor(rules: ChoiceRules, promptTokenIds: readonly number[]) {
    this.#rules = rules;
    this.#detokenizer = new Detokenizer(rules.bytes, rules.skip);
    this.#stops = new StopStrings(rules.stop);
    this.#promptTokenIds = promptTokenIds;
  }

  /** Puts the prompt in front of the first delta. */
  echo(echo: Echo): void {
    this.#echo = echo;
  }

  get finished(): boolean {
    return this.#finish !== undefined;
  }

  /** The output so far. */
  get ids(): readonly number[] {
    return this.#ids;
  }

  /** What several choices are compared by. */
  get meanLogprob(): number {
    return this.#ids.length === 0 ? 0 : this.#logprobSum / this.#ids.length;
  }

  /**
   * Takes new tokens, in order. After the one that ends the choice the rest is ignored.
   * @param reported what the worker says about the last of them.
   */
  push(tokens: readonly SampledToken[], reported?: FinishReason): ChoiceDelta {
    const { prompt, choice, maxTokens, wantLogprobs } = this.#rules;
    const logprobs: Logprobs = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
    const tokenIds: number[] = [];
    let text = this.#takeEcho(logprobs);
    const promptTokenIds = this.#promptTokenIds;
    this.#promptTokenIds = undefined;
    if (maxTokens === 0) this.#finish = 'length';
    for (const token of tokens) {
      if (this.finished) break;
      tokenIds.push(token.id);
      this.#logprobSum += token.logprob ?? 0;
      if (wantLogprobs) this.#report(logprobs, token);
      text += this.#take(token.id);
    }
    if (!this.finished && reported !== undefined) text += this.#end(reported);
    const finishReason = this.#finish ?? null;
    return { prompt, choice, text, tokenIds, promptTokenIds, logprobs: wantLogprobs ? logprobs : null, finishReason };
  }

  /** The text that a token sets free. */
  #take(id: number): string {
    const { stopIds, maxTokens, minTokens } = this.#rules;
    this.#ids.push(id);
    const count = this.#ids.length;
    const piece = this.#detokenizer.push(id);
    this.#offset += characters(piece);
    const text = count > minTokens ? this.#stops.push(piece) : piece;
    if (this.#stops.stopped || stopIds.has(id)) return text + this.#end('stop');
    return count >= maxTokens ? text + this.#end('length') : text;
  }

  /** The text that was held back to the end. */
  #end(reason: FinishReason): string {
    const text = this.#stops.push(this.#detokenizer.end()) + this.#stops.end();
    this.#finish = this.#stops.stopped ? 'stop' : reason;
    return text;
  }

  #takeEcho(logprobs: Logprobs): string {
    const echo = this.#echo;
    this.#echo = undefined;
    if (echo === undefined) return '';
    const detokenizer = new Detokenizer(this.#rules.bytes, () => false);
    for (const [i, token] of echo.tokens.entries()) {
      if (this.#rules.wantLogprobs) this.#report(logprobs, token, i === 0);
      this.#offset += characters(detokenizer.push(token.id));
    }
    this.#offset = characters(echo.text);
    return echo.text;
  }

  /** @param unpredicted the first token of a text: nothing predicts it. */
  #report(logprobs: Logprobs, token: SampledToken, unpredicted = false): void {
    const alternatives = [token, ...(token.top ?? [])].map(({ id, logprob = 0 }) => [this.#name(id), logprob] as const);
    logprobs.tokens.push(this.#name(token.id));
    logprobs.token_logprobs.push(unpredicted ? null : (token.logprob ?? 0));
    logprobs.top_logprobs.push(unpredicted ? null : Object.fromEntries(alternatives));
    logprobs.text_offset.push(this.#offset);
  }

  /** A token's text, or its bytes as OpenAI writes them where they are no whole characters. */
  #name(id: number): string {
    const bytes = this.#rules.bytes(id);
    const text = Buffer.from(bytes).toString('utf8');
    if (Buffer.from(text).equals(bytes)) return text;
    return `bytes:${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}`;
  }
}

function characters(text: string): number {
  let count = 0;
  for (const _ of text) count++;
  return count;
}
