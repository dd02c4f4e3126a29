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

/** UTF-16 units whose line ends are changed between two steps: at most 2 ms, if there is nothing else. */
const UNITS_PER_STEP = 32_768;

/**
 * Text whose lines end in `\n`. A `\r` that stands alone stays. It yields between two steps, since a text may have
 * megabytes: 2 MiB of line ends take 80 ms.
 */
export function* lfSteps(text: string): Generator<void, string> {
  const pieces: string[] = [];
  for (let at = 0; at < text.length; at += UNITS_PER_STEP) {
    if (at > 0) yield;
    const end = at + UNITS_PER_STEP;
    const piece = text.slice(at, end).replaceAll('\r\n', '\n');
    pieces.push(piece.endsWith('\r') && text[end] === '\n' ? piece.slice(0, -1) : piece);
  }
  return pieces.join('');
}

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
