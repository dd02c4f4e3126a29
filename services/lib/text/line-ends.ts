/**
 * Line ends of prompts and completions. Models were trained on lines that end in `\n`: a file whose lines end in `\r\n`
 * is given to them with `\n`, which also spares a token per line. They put out `\n`, and inserted into such a file it
 * would have both, so that the answer gets the line ends of the file.
 */

/** Whether the line end nearest to the cursor is `\r\n`: the last one before it, or else the first one after it. */
export function usesCrlf(before: string, after: string): boolean {
  const above = before.lastIndexOf('\n');
  if (above >= 0) return before[above - 1] === '\r';
  const below = after.indexOf('\n');
  return (below === 0 ? before.at(-1) : after[below - 1]) === '\r';
}

/** Text whose lines end in `\n`. A `\r` that stands alone stays. */
export const toLf = (text: string) => text.replaceAll('\r\n', '\n');

/** Text whose lines end in `\r\n`, however they ended before. */
export const toCrlf = (text: string) => text.replace(/(?<!\r)\n/g, '\r\n');

/** Does the same for a text that comes in pieces, wherever they are cut. */
export class CrlfWriter {
  #afterReturn: boolean;

  /** @param before the text that the pieces follow. */
  constructor(before: string) {
    this.#afterReturn = before.endsWith('\r');
  }

  push(piece: string): string {
    if (piece === '') return '';
    const text = this.#afterReturn && piece.startsWith('\n') ? `\n${toCrlf(piece.slice(1))}` : toCrlf(piece);
    this.#afterReturn = piece.endsWith('\r');
    return text;
  }
}
