/**
 * Where a gap begins for a language model that goes on with a text: at a boundary between two of its tokens. A cursor
 * often stands within a token. GPT-2's tokenizer, and those made after it, have one token for a line end with most of
 * the indentation behind it, and one for a space with the word behind it, so a prompt that ends with a line end says
 * that the next line has no indentation, and one that ends with a space that no word follows. What such a model then
 * does says little of what it knows. Models that fill in the middle were trained with gaps between any two characters.
 */
import { createHash } from 'node:crypto';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import type { DataRow, DataSet } from './rows.ts';

/** Characters before the gap in which a boundary is looked for: tokens longer than that are not moved. */
const LOOK_BACK = 256;

/** A gap, and the text before it. */
export interface Gap {
  readonly left: string;
  readonly target: string;
}

/**
 * The same text with the gap's beginning at the last token boundary that is not after it: characters that belong to the
 * target's first token move from `left` to `target`. Then the ids of `left` and those of `target` are those of both
 * together. A gap without such a boundary in reach stays where it is.
 * @returns `left + target` is the same text as before.
 */
export function atTokenBoundary(tokenizer: Pick<Tokenizer, 'encode' | 'bytes'>, { left, target }: Gap): Gap {
  const near = left.slice(-LOOK_BACK);
  const encode = (text: string) => tokenizer.encode(text, 'as text', 'within');
  const ids = encode(near + target);
  const bytes = Buffer.byteLength(near);
  const ends = [0];
  for (const id of ids) ends.push(ends.at(-1)! + tokenizer.bytes(id).length);
  const text = Buffer.from(near);
  for (let count = ends.findLastIndex((end) => end <= bytes); count > 0; count--) {
    const kept = text.toString('utf8', 0, ends[count]!);
    if (!near.startsWith(kept)) continue; // it ends within a character
    const moved = near.slice(kept.length) + target;
    const same = [...encode(kept), ...encode(moved)];
    if (same.length !== ids.length || same.some((id, i) => id !== ids[i])) continue;
    return { left: left.slice(0, left.length - near.length) + kept, target: moved };
  }
  return { left, target };
}

/** A row whose gap begins at a boundary. It is computed when it is read, as the row is unpacked then. */
class BoundaryRow implements DataRow {
  readonly #row: DataRow;
  readonly #tokenizer: Tokenizer;

  constructor(row: DataRow, tokenizer: Tokenizer) {
    this.#row = row;
    this.#tokenizer = tokenizer;
  }

  get name() {
    return this.#row.name;
  }

  get left() {
    return atTokenBoundary(this.#tokenizer, this.#row).left;
  }

  get right() {
    return this.#row.right;
  }

  get target() {
    return atTokenBoundary(this.#tokenizer, this.#row).target;
  }

  get chunks() {
    return this.#row.chunks;
  }
}

/** A data set whose gaps begin at boundaries. Its digest is another one: what is made of it has other results. */
export const atTokenBoundaries = (data: DataSet, tokenizer: Tokenizer): DataSet => ({
  rows: data.rows.map((row) => new BoundaryRow(row, tokenizer)),
  digest: createHash('sha256').update(`token boundaries ${data.digest}`).digest('hex'),
});
