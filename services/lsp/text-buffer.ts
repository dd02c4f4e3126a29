/** The text of an open document, and the editor's positions in it: lines and characters of the encoding agreed on. */

/** What an editor counts as a character: a byte of UTF-8, a unit of UTF-16, or a code point. */
export const POSITION_ENCODINGS = ['utf-8', 'utf-16', 'utf-32'] as const;
export type PositionEncoding = (typeof POSITION_ENCODINGS)[number];

/** A place between two characters; both count from 0. */
export interface Position {
  readonly line: number;
  readonly character: number;
}

export interface Range {
  readonly start: Position;
  readonly end: Position;
}

/** What stands in `range` becomes `text`; the whole document does where no range is given. */
export interface TextChange {
  readonly range?: Range;
  readonly text: string;
}

const LINE_END = /\r\n|\r|\n/g;

export class TextBuffer {
  readonly #encoding: PositionEncoding;
  #text: string;
  /** Offsets at which lines begin and end (without their line ends), worked out when they are needed. */
  #lines: readonly { readonly start: number; readonly end: number }[] | undefined;

  constructor(text: string, encoding: PositionEncoding) {
    this.#text = text;
    this.#encoding = encoding;
  }

  get text(): string {
    return this.#text;
  }

  /** The line end of the first line; '\n' where there is one line only. */
  get lineEnd(): '\r\n' | '\n' {
    return /\r\n|\n/.exec(this.#text)?.[0] === '\r\n' ? '\r\n' : '\n';
  }

  /** Applies changes one after the other, each to the text that the one before has left. */
  apply(changes: readonly TextChange[]): void {
    for (const { range, text } of changes) {
      if (range === undefined) this.#text = text;
      else {
        const [a, b] = [this.offsetAt(range.start), this.offsetAt(range.end)];
        this.#text = this.#text.slice(0, Math.min(a, b)) + text + this.#text.slice(Math.max(a, b));
      }
      this.#lines = undefined;
    }
  }

  /**
   * The offset of a position, in UTF-16 units. As the protocol says, a character behind the end of its line is that
   * end, and a line behind the last one is the end of the text. The middle of a character is its beginning.
   */
  offsetAt({ line, character }: Position): number {
    const lines = this.#linesOfText();
    if (line < 0) return 0;
    const at = lines[line];
    if (at === undefined) return this.#text.length;
    let offset = at.start;
    for (let left = character; offset < at.end; ) {
      const next = offset + (this.#text.codePointAt(offset)! > 0xffff ? 2 : 1);
      left -= this.#width(offset, next);
      if (left < 0) break;
      offset = next;
    }
    return offset;
  }

  /** The position of an offset in UTF-16 units. One within a line end is the end of its line. */
  positionAt(offset: number): Position {
    const lines = this.#linesOfText();
    let [low, high] = [0, lines.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (lines[middle]!.start <= offset) low = middle;
      else high = middle - 1;
    }
    const { start, end } = lines[low]!;
    return { line: low, character: this.#width(start, Math.max(start, Math.min(offset, end))) };
  }

  /** Characters from one offset to another. */
  #width(from: number, to: number): number {
    if (this.#encoding === 'utf-16') return to - from;
    const text = this.#text.slice(from, to);
    return this.#encoding === 'utf-8' ? Buffer.byteLength(text) : [...text].length;
  }

  #linesOfText() {
    if (this.#lines !== undefined) return this.#lines;
    const lines: { start: number; end: number }[] = [];
    let start = 0;
    for (const { index, 0: lineEnd } of this.#text.matchAll(LINE_END)) {
      lines.push({ start, end: index });
      start = index + lineEnd.length;
    }
    lines.push({ start, end: this.#text.length });
    this.#lines = lines;
    return lines;
  }
}
