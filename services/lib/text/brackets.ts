/**
 * Which brackets are open at the end of a text of code that comes in pieces. Brackets within string literals do not
 * count. It knows no language: an apostrophe in a comment is taken for a string, which ends with its line.
 */

const PARTNER: Readonly<Record<string, string>> = { ')': '(', ']': '[', '}': '{' };

/** Most brackets that are remembered: code nests a few dozen deep. Deeper ones count as closed. */
const MOST_OPEN = 1_024;

export class Brackets {
  readonly #open: { readonly bracket: string; readonly at: number }[] = [];
  /** The quotes that end the literal at the end of the text: one, or three of the same kind. */
  #quotes = '';
  #at = 0;
  #escaped = false;
  /** Quotes of the literal's kind that stand directly before the next character. */
  #run = 0;

  /** Number of brackets that are open. */
  get depth(): number {
    return this.#open.length;
  }

  /** Whether the text ends within a literal that goes on on the next line. */
  get inLongString(): boolean {
    return this.#quotes.length === 3 || this.#quotes === '`';
  }

  /** The innermost open bracket. */
  get innermost(): string | undefined {
    return this.#open.at(-1)?.bracket;
  }

  /** Place of the first of the round and square brackets that are open at the end, with no `{` after it. */
  get openSince(): number | undefined {
    const after = this.#open.findLastIndex(({ bracket }) => bracket === '{') + 1;
    return this.#open[after]?.at;
  }

  /**
   * Takes one character.
   * @returns for a closing bracket outside of literals, whether it closes the innermost one.
   */
  push(character: string): 'matched' | 'unmatched' | undefined {
    const at = this.#at;
    this.#at += character.length;
    if (this.#inLiteral(character)) return undefined;
    if (character === '(' || character === '[' || character === '{') {
      if (this.#open.length < MOST_OPEN) this.#open.push({ bracket: character, at });
      return undefined;
    }
    const partner = PARTNER[character];
    if (partner === undefined) return undefined;
    if (this.innermost !== partner) return 'unmatched';
    this.#open.pop();
    return 'matched';
  }

  #inLiteral(character: string): boolean {
    if (this.#quotes === '') {
      const isQuote = character === '"' || character === "'" || character === '`';
      if (isQuote) this.#quotes = character;
      this.#run = isQuote ? 1 : 0;
      return isQuote;
    }
    if (this.#escaped) {
      this.#escaped = false;
      this.#run = 0;
    } else if (character === '\\') this.#escaped = true;
    else if (character === this.#quotes[0]) this.#quote(character);
    else if (this.#run === 2 && this.#quotes.length === 1) return this.#afterEmpty(character);
    else {
      this.#run = 0;
      if (character === '\n' && !this.inLongString) this.#quotes = '';
    }
    return true;
  }

  /** Two quotes are an empty literal, and three begin or end one that may have many lines. */
  #quote(character: string): void {
    this.#run++;
    if (this.#quotes.length === 3) {
      if (this.#run === 3) this.#close();
    } else if (character === '`' || this.#run === 1) this.#close();
    else if (this.#run === 3) {
      this.#quotes = character.repeat(3);
      this.#run = 0;
    }
  }

  /** A character after an empty literal: the literal ended before it. */
  #afterEmpty(character: string): boolean {
    this.#close();
    return this.#inLiteral(character);
  }

  #close(): void {
    this.#quotes = '';
    this.#run = 0;
  }
}
