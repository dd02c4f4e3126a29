/**
 * Finds the names of added tokens in a text, with the options that Hugging Face's tokenizers give them. The library
 * that we use does the same in one go over the whole text (6 s for 4 MB of code), and ignores `single_word`.
 *
 *   lstrip, rstrip   the white space before or after the name belongs to the token
 *   single_word      the name counts only where no letter, digit or `_` touches it
 *   normalized       the name is looked for in normalised text, after all names that are looked for in plain text
 *
 * Of the names that begin at one place the longest one counts, and no two overlap. A search goes through the text once
 * from its beginning, and can be interrupted.
 */
import type { TokenizerJson } from './tokenizer-json.ts';

type AddedTokenJson = TokenizerJson['added_tokens'][number];

/** A stretch of a text: plain text, or an added token. */
export interface Section {
  readonly start: number;
  readonly end: number;
  /** undefined for plain text. */
  readonly id?: number;
}

/** UTF-16 units that are searched in one step. */
const STEP = 16_384;

/** A node of the tree of names, by UTF-16 units. */
interface Node {
  readonly next: Map<number, Node>;
  token?: AddedTokenJson;
}

const SPACE = /\s/;
/** Rust's `\w`. */
const WORD = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;

export class AddedTokenSearch {
  readonly #root: Node = { next: new Map() };
  /** 1 for every unit with which a name begins. */
  readonly #begins = new Uint8Array(0x1_0000);

  /** @param tokens by the names to look for; of two with one name the later counts. */
  constructor(tokens: Iterable<readonly [name: string, token: AddedTokenJson]>) {
    for (const [name, token] of tokens) {
      if (name === '') continue;
      let node = this.#root;
      for (let i = 0; i < name.length; i++) {
        const unit = name.charCodeAt(i);
        const next: Node = node.next.get(unit) ?? { next: new Map() };
        node.next.set(unit, next);
        node = next;
      }
      node.token = token;
      this.#begins[name.charCodeAt(0)] = 1;
    }
  }

  get isEmpty(): boolean {
    return this.#root.next.size === 0;
  }

  /** The sections of a text in order. Yields undefined between two steps of a long search. */
  *sections(text: string): Generator<Section | undefined, void> {
    let done = 0;
    for (let at = 0, pause = STEP; at < text.length; ) {
      if (at >= pause) {
        yield undefined;
        pause = at + STEP;
      }
      const match = this.#begins[text.charCodeAt(at)] === 1 ? this.#longestAt(text, at) : undefined;
      if (match === undefined) {
        at++;
        continue;
      }
      const { token, end } = match;
      const begin = at;
      at = end;
      if (token.single_word && touchesWord(text, begin, end)) continue;
      const start = token.lstrip ? yield* spaceBefore(text, begin, done) : begin;
      // A name of white space may lie in what the token before it has taken.
      const stop = token.rstrip ? yield* spaceAfter(text, Math.max(end, done)) : end;
      if (start > done) yield { start: done, end: start };
      yield { start, end: stop, id: token.id };
      done = stop;
    }
    if (done < text.length) yield { start: done, end: text.length };
  }

  #longestAt(text: string, start: number): { token: AddedTokenJson; end: number } | undefined {
    let found: { token: AddedTokenJson; end: number } | undefined;
    let node = this.#root.next.get(text.charCodeAt(start));
    for (let end = start + 1; node !== undefined; node = node.next.get(text.charCodeAt(end++))) {
      if (node.token !== undefined) found = { token: node.token, end };
    }
    return found;
  }
}

function touchesWord(text: string, start: number, end: number): boolean {
  const before = text.slice(Math.max(0, start - 2), start);
  return WORD.test(Array.from(before).at(-1) ?? '') || WORD.test(String.fromCodePoint(text.codePointAt(end) ?? 0x20));
}

/** The beginning of the white space that ends at `end`, but not before `least`. (No white space is two units long.) */
function* spaceBefore(text: string, end: number, least: number): Generator<undefined, number> {
  let start = end;
  while (start > least && SPACE.test(text.charAt(start - 1))) if ((end - --start) % STEP === 0) yield undefined;
  return start;
}

/** The end of the white space that begins at `start`. */
function* spaceAfter(text: string, start: number): Generator<undefined, number> {
  let end = start;
  while (end < text.length && SPACE.test(text.charAt(end))) if ((++end - start) % STEP === 0) yield undefined;
  return end;
}
