/**
 * Builds prompts as ids throughout: strings are never joined and tokenized again.
 *
 *   fill-in-the-middle   [bos] [S1…Sk] HEAD prefix LEFT suffix RIGHT middle     (psm)
 *                        [bos] [S1…Sk] HEAD suffix RIGHT prefix LEFT middle     (spm)
 *   raw                  [bos] [S1…Sk] PROMPT                                   (no bos if the client sent ids)
 *
 * A beginning of the completion that the client gives stands behind all of it.
 *
 * S1…Sk are places for soft tokens: those of files, then those of chunks, each the best first; context as text stands
 * in the same place, behind the soft tokens of a prompt that has both. Between two keystrokes most of a prompt stays
 * the same, and prefill computes only what follows the first difference. Therefore LEFT is cut at places that do not
 * move with the cursor, and spm, if the model allows it, puts the part that changes at the end.
 */
import { ServingError } from '../process/errors.ts';
import { NO_SOFT_TOKENS, type SoftTokens, type TokenPrompt } from '../request/token-prompt.ts';
import { formOf, type PromptFormat, type PromptOrder } from './prompt-format.ts';
import { type FittedText, type TextContext, textContextSteps } from './text-context.ts';
import type { Tokenizer } from './tokenizer.ts';

type Ids = readonly number[];

/** A prompt, and how much of the context that was offered stands in it. */
export interface BuiltPrompt extends TokenPrompt {
  /** Tokens at its end that the completion begins with. */
  readonly begunTokens: number;
  /** Chunks of the context that stand in the prompt, at least in part; the best ones. */
  readonly contextChunks: number;
  /** Those of them that stand as text: the first of the context's chunks of text. */
  readonly contextTexts: number;
  /** Files whose soft tokens stand in the prompt; the best ones. */
  readonly contextFiles: number;
  /** Whether context was shortened or left out because the model does not hold all of it beside the prompt. */
  readonly contextCut: boolean;
  /** Whether a part of the prompt or of the suffix was left out because the model does not hold all of it. */
  readonly promptCut: boolean;
}

/** Noted on the way: whether anything of the client's own text was left out. */
interface Cut {
  happened: boolean;
}

interface SoftContext {
  readonly kind: 'soft';
  /** The vectors [perChunk, hidden] of each chunk, the best chunk first. A chunk stands whole or not at all. */
  readonly vectors: readonly Float32Array[];
  /** Soft tokens of one chunk; 1 if it is not given. */
  readonly perChunk?: number | undefined;
  /** One vector [hidden] per file, the best file first. They stand before the chunks, as far as these leave room. */
  readonly files?: readonly Float32Array[] | undefined;
  /** Chunks that stand as text behind the vectors, as far as there is room for them besides. */
  readonly text?: TextContext | undefined;
  /**
   * The vectors of those, one for each: a chunk that has no place as text stands as a soft token before the others.
   * One without a vector is left out then; if the list is not given, all are.
   */
  readonly textVectors?: readonly (Float32Array | undefined)[] | undefined;
}

export interface PromptParts {
  /** The text before the cursor, or the whole prompt; as ids if the client tokenizes. */
  readonly prompt: string | readonly number[];
  /** The text after the cursor. If it is given, even as "", the model fills in the middle. */
  readonly suffix?: string;
  /** Text before the frame, in which names are tokens. It takes at most half of the room; its beginning goes first. */
  readonly head?: string;
  /** Text that the completion begins with; it is never cut. */
  readonly completionPrefix?: string;
  readonly context?: SoftContext | TextContext;
  /** Positions that one slot holds, prompt and output together. */
  readonly capacity: number;
  /** The most tokens of the output. */
  readonly maxTokens: number;
  /** Cut the prompt to so many tokens, or with -1 to what the capacity leaves. */
  readonly truncateTo?: number;
  /** Whether [bos] comes first, if the tokenizer has one; true by default. A raw prompt of ids never gets one. */
  readonly addSpecialTokens?: boolean;
}

/**
 * LEFT is cut at the first line after a multiple of this number of characters in the file. A cut that followed the
 * cursor token by token would leave nothing of the last prompt's KV to reuse. On average this costs half of it, 64
 * tokens.
 */
const CUT_CHARACTERS = 512;

const NO_TEXT: FittedText = { ids: [], chunks: 0, cut: false };

/** When both are cut, LEFT gets this many times as many tokens as RIGHT (the authors' lc_rc_ratio). */
const LEFT_TO_RIGHT = 2;

export class PromptBuilder {
  readonly #tokenizer: Tokenizer;
  readonly #format: PromptFormat;
  readonly #order: PromptOrder;

  constructor(tokenizer: Tokenizer, format: PromptFormat, order: PromptOrder = 'psm') {
    this.#tokenizer = tokenizer;
    this.#format = format;
    this.#order = order;
  }

  /**
   * Builds one prompt. A file around a cursor that does not fit is cut, far from the cursor first. A raw prompt is cut
   * only if `truncateTo` says so. Context never keeps a prompt out: it is cut to the room that it may have. It yields
   * between two words, since a prompt may have megabytes.
   * @throws ServingError context_length_exceeded; invalid_request for an empty prompt.
   */
  *build(parts: PromptParts): Generator<void, BuiltPrompt> {
    const bos = leadingIds(this.#tokenizer, parts, this.#format.frame !== undefined);
    const begun = yield* prefixSteps(this.#tokenizer, parts.completionPrefix);
    const room = this.#room(parts) - bos.length - begun.length;
    const uncut =
      parts.suffix === undefined && parts.truncateTo === undefined ? yield* this.#raw(parts, room) : undefined;
    const context = yield* this.#context(parts.context, this.#contextRoom(parts, room, uncut?.length));
    const cut: Cut = { happened: false };
    const own = uncut ?? (yield* this.#cut(parts, room - context.ids.length, cut));
    const ids = [...bos, ...context.ids, ...own, ...begun];
    if (ids.length === 0) throw new ServingError('invalid_request', 'prompt is empty', { param: 'prompt' });
    return {
      ids: Int32Array.from(ids),
      begunTokens: begun.length,
      soft: softTokens(context.vectors, context.soft, bos.length),
      contextChunks: context.chunks,
      contextTexts: context.texts,
      contextFiles: context.files,
      contextCut: context.cut,
      promptCut: cut.happened,
    };
  }

  /** The most tokens that the prompt may have. */
  #room({ capacity, maxTokens, truncateTo }: PromptParts): number {
    const room = capacity - maxTokens;
    if (room < 1) {
      throw new ServingError(
        'context_length_exceeded',
        `max_tokens ${maxTokens} leaves no room for a prompt: this model holds ${capacity} tokens, prompt and output together`,
        { param: 'max_tokens' },
      );
    }
    return truncateTo === undefined || truncateTo === -1 ? room : Math.min(room, truncateTo);
  }

  /**
   * Tokens that context may take: at most half of the room, because the code at the cursor matters more, and only what
   * the prompt leaves.
   * @param uncut tokens of a prompt that may not be cut; undefined for one that may.
   */
  #contextRoom({ suffix }: PromptParts, room: number, uncut: number | undefined): number {
    const frame = suffix === undefined ? 0 : (this.#format.frame?.length ?? 0);
    return Math.min(Math.floor(room / 2), room - (uncut ?? frame + 1));
  }

  /** The context as ids, with the vectors that take the places of some, as far as it fits into `room` tokens. */
  *#context(context: PromptParts['context'], room: number) {
    const soft = context?.kind === 'soft' ? context : undefined;
    const written = context?.kind === 'text' ? context : soft?.text;
    const { vectors: offered = [], perChunk = 1, files: offeredFiles = [], textVectors = [] } = soft ?? {};
    const wanted = offered.length * perChunk + offeredFiles.length;
    const text = written
      ? yield* textContextSteps(this.#tokenizer, this.#format, written, room - Math.min(wanted, room))
      : NO_TEXT;
    const instead = textVectors.slice(text.chunks).filter((vector) => vector !== undefined);
    const left = Math.max(room - text.ids.length, 0);
    const chunks = [...instead, ...offered].slice(0, Math.floor(left / perChunk));
    const files = offeredFiles.slice(0, left - chunks.length * perChunk);
    const places = files.length + chunks.length * perChunk;
    const ids = new Array<number>(places).fill(this.#format.placeholder);
    const isWhole = chunks.length === instead.length + offered.length && files.length === offeredFiles.length;
    return {
      ids: [...ids, ...text.ids],
      vectors: [...files, ...chunks],
      soft: places,
      files: files.length,
      chunks: chunks.length + text.chunks,
      texts: text.chunks,
      cut: text.cut || !isWhole,
    };
  }

  /** A raw prompt that must fit. */
  *#raw(parts: PromptParts, room: number): Generator<void, Ids> {
    const { prompt } = parts;
    const ids = typeof prompt === 'string' ? yield* this.#tokenizer.headSteps(prompt, room + 1, 'as tokens') : prompt;
    if (ids.length > room)
      throw tooLong(parts, typeof prompt === 'string' ? 'the prompt' : `a prompt of ${ids.length} tokens`);
    return ids;
  }

  /** A prompt that is cut to the room. */
  *#cut(parts: PromptParts, room: number, cut: Cut): Generator<void, Ids> {
    const { prompt, suffix } = parts;
    if (suffix !== undefined) return yield* this.#fillIn(prompt, suffix, room, parts, cut);
    if (room < 1) throw tooLong(parts, 'the token that every prompt begins with');
    // One token more than fits shows whether anything is cut.
    const ids = typeof prompt === 'string' ? yield* this.#tokenizer.tailSteps(prompt, room + 1, 'as tokens') : prompt;
    cut.happened = ids.length > room;
    return ids.slice(-room);
  }

  *#fillIn(
    prompt: PromptParts['prompt'],
    suffix: string,
    room: number,
    parts: PromptParts,
    cut: Cut,
  ): Generator<void, Ids> {
    const { frame } = this.#format;
    const form = formOf(this.#format, this.#order);
    const free = room - (frame?.length ?? 0);
    if (free < 1) throw tooLong(parts, 'the frame of a prompt with suffix');
    const head = yield* this.#head(parts, Math.floor(free / 2));
    const sides = free - head.length;
    // One token more than fits shows whether anything is cut.
    const left =
      typeof prompt === 'string' ? yield* this.#tokenizer.tailSteps(prompt, sides + 1) : prompt.slice(-sides - 1);
    const cutTo = (count: number) => this.#cutLeft(prompt, left, count);
    if (form === undefined) {
      cut.happened = left.length > sides;
      return cut.happened ? yield* cutTo(sides) : left;
    }
    const right = yield* this.#tokenizer.headSteps(suffix, sides + 1, 'as text', 'within');
    const [keepLeft, keepRight] = share(sides, left.length, right.length);
    cut.happened = keepLeft < left.length || keepRight < right.length;
    const kept = {
      left: keepLeft < left.length ? yield* cutTo(keepLeft) : left,
      right: right.slice(0, keepRight),
    };
    return [...head, ...form.flatMap((part) => (typeof part === 'number' ? part : kept[part]))];
  }

  /** What stands before the frame, without a beginning of text that the prompt has already. */
  *#head(parts: PromptParts, most: number): Generator<void, Ids> {
    if (parts.head === undefined) return [];
    const bos = leadingIds(this.#tokenizer, parts, true);
    const ids = yield* this.#tokenizer.tailSteps(parts.head, most + bos.length, 'as tokens');
    const begins = bos.length > 0 && bos.every((id, i) => ids[i] === id);
    return ids.slice(Math.max(begins ? bos.length : 0, ids.length - most));
  }

  /**
   * At most the last `count` tokens of LEFT, from a place that does not move with the cursor.
   * @param ids the end of LEFT: more than `count` tokens.
   */
  *#cutLeft(prompt: PromptParts['prompt'], ids: Ids, count: number): Generator<void, Ids> {
    const kept = ids.slice(ids.length - count);
    if (typeof prompt !== 'string') return kept;
    const start = prompt.length - this.#tokenizer.decode(kept).length;
    const cut = Math.ceil(start / CUT_CHARACTERS) * CUT_CHARACTERS;
    const line = prompt.indexOf('\n', cut) + 1;
    // In a file of one endless line, or if this cut would leave little, it is better to keep all that fits.
    if (line === 0 || line - start > (prompt.length - start) / 2) return kept;
    const whole = yield* this.#tokenizer.headSteps(prompt.slice(line), count + 1);
    return whole.length <= count ? whole : kept;
  }
}

/**
 * The ids before everything else, such as [bos]. A raw prompt of ids has them already if the client wants them. Ids
 * that are put into a frame are a part of a file, so the beginning of the prompt is ours.
 * @param canFrame whether the model fills in the middle. A prompt without suffix is raw in any case.
 */
export function leadingIds(
  tokenizer: Pick<Tokenizer, 'leadingIds'>,
  { prompt, suffix, addSpecialTokens = true }: Pick<PromptParts, 'prompt' | 'suffix' | 'addSpecialTokens'>,
  canFrame: boolean,
): readonly number[] {
  const framed = suffix !== undefined && canFrame;
  return addSpecialTokens && (framed || typeof prompt === 'string') ? tokenizer.leadingIds : [];
}

/** The ids of the text that a completion begins with, made in steps; none where there is no such text. */
export function* prefixSteps(
  tokenizer: Pick<Tokenizer, 'headSteps'>,
  completionPrefix: string | undefined,
): Generator<void, Ids> {
  if (completionPrefix === undefined) return [];
  return yield* tokenizer.headSteps(completionPrefix, Number.MAX_SAFE_INTEGER, 'as text', 'within');
}

/**
 * How many tokens of LEFT and RIGHT are kept: all if they fit, otherwise 2:1, plus what the other side does not need.
 */
export function share(room: number, left: number, right: number): [left: number, right: number] {
  if (left + right <= room) return [left, right];
  const rightShare = Math.max(Math.floor(room / (LEFT_TO_RIGHT + 1)), room - left);
  const keepRight = Math.min(right, rightShare);
  return [room - keepRight, keepRight];
}

/** @param count soft tokens of all vectors together. */
function softTokens(vectors: readonly Float32Array[], count: number, start: number): SoftTokens {
  if (count === 0) return NO_SOFT_TOKENS;
  const joined = new Float32Array(vectors.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const vector of vectors) {
    joined.set(vector, at);
    at += vector.length;
  }
  return { positions: Int32Array.from({ length: count }, (_, i) => start + i), vectors: joined };
}

/** @param what does not fit. */
const tooLong = ({ capacity, maxTokens }: PromptParts, what: string) =>
  new ServingError(
    'context_length_exceeded',
    `the prompt is too long: of the ${capacity} tokens that this model holds, max_tokens ${maxTokens} are for ` +
      `the completion, and ${what} does not fit into the rest`,
    { param: 'prompt' },
  );
