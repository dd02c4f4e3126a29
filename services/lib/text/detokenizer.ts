/**
 * Turns token ids into text as they come. Text that has been handed out never changes: bytes wait until their character
 * is complete, and text that may be the beginning of a stop string waits until it is known not to be.
 */

const newDecoder = () => new TextDecoder('utf-8', { ignoreBOM: true });

/** Unicode characters of a text. */
export function characters(text: string): number {
  let count = 0;
  for (const _ of text) count++;
  return count;
}

/** UTF-16 units that are counted between two steps: about 0.1 ms. */
const UNITS_PER_STEP = 16_384;

/** The place `at` in a text, or the one after it if `at` lies between the two halves of a character. */
export const afterCharacter = (text: string, at: number): number =>
  /^[\ud800-\udbff][\udc00-\udfff]$/.test(text.slice(Math.max(0, at - 1), at + 1)) ? at + 1 : at;

/** Does the work of {@link characters} in steps. */
export function* characterSteps(text: string): Generator<void, number> {
  let count = 0;
  for (let start = 0; start < text.length; ) {
    const end = afterCharacter(text, Math.min(start + UNITS_PER_STEP, text.length));
    count += characters(text.slice(start, end));
    start = end;
    yield;
  }
  return count;
}

/** The text of one sequence of tokens, without the tokens that steer the model. */
export class Detokenizer {
  readonly #bytes: (id: number) => Uint8Array;
  readonly #skip: (id: number) => boolean;
  readonly #decoder = newDecoder();
  #leftover = 0;

  /**
   * @param bytes the bytes of a token.
   * @param skip whether a token is left out of the text.
   */
  constructor(bytes: (id: number) => Uint8Array, skip: (id: number) => boolean) {
    this.#bytes = bytes;
    this.#skip = skip;
  }

  /** The characters that this token completes. */
  push(id: number): string {
    this.#leftover = 0;
    if (this.#skip(id)) return '';
    const bytes = this.#bytes(id);
    const text = this.#decoder.decode(bytes, { stream: true });
    if (text.startsWith('\ufffd')) {
      // Bytes that continue the character of the tokens before make fewer characters than they would alone, and bytes
      // that do not continue it make as many, after the replacement of what was never finished.
      const alone = newDecoder().decode(bytes, { stream: true });
      this.#leftover = Math.max(characters(text) - characters(alone), 0);
    }
    return text;
  }

  /**
   * How many of the characters that `push` returned last belong to the tokens before: 1 where the replacement of a
   * character that they did not finish stands in front, else 0.
   */
  get leftover(): number {
    return this.#leftover;
  }

  /** A replacement character if the sequence ended within a character, otherwise nothing. */
  end(): string {
    return this.#decoder.decode();
  }
}

/**
 * Cuts a text before the stop string that is complete first, and before the longest one if several are complete at
 * once. It makes no difference how the text is split into pushes.
 */
export class StopStrings {
  readonly #stops: readonly string[];
  #held = '';
  #found: string | undefined;

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** Whether a stop string was found: no text comes after it. */
  get stopped(): boolean {
    return this.#found !== undefined;
  }

  /** The stop string that was found. */
  get found(): string | undefined {
    return this.#found;
  }

  /** The part of the text that certainly comes before any stop string. */
  push(text: string): string {
    if (this.stopped) return '';
    const seen = this.#held + text;
    const first = this.#firstStop(seen);
    if (first !== undefined) {
      this.#found = seen.slice(first.start, first.end);
      this.#held = '';
      return seen.slice(0, first.start);
    }
    const keep = this.#mayBegin(seen);
    this.#held = seen.slice(seen.length - keep);
    return seen.slice(0, seen.length - keep);
  }

  /** Text that was held back and turned out not to be a stop string. */
  end(): string {
    const rest = this.#held;
    this.#held = '';
    return rest;
  }

  /** The stop string that ends first, and the one that starts first if two end together. */
  #firstStop(text: string): { readonly start: number; readonly end: number } | undefined {
    let best: { start: number; end: number } | undefined;
    for (const stop of this.#stops) {
      const start = text.indexOf(stop);
      const end = start + stop.length;
      if (start < 0) continue;
      if (best === undefined || end < best.end || (end === best.end && start < best.start)) best = { start, end };
    }
    return best;
  }

  /** The length of the longest end of `text` with which a stop string begins. */
  #mayBegin(text: string): number {
    let longest = 0;
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
