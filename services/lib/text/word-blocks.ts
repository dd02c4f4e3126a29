/**
 * Cuts a text into blocks before it is split into words, so that the words are those of the whole text. A text is split
 * block by block: the first or last tokens of a large file then cost no more than the block that they lie in.
 *
 * A letter at the start of a line begins a word in the pre-tokenizers of GPT-2, StarCoder, Llama 3, Qwen and DeepSeek,
 * and so does a space between a character that is not a space and a letter. None of these pre-tokenizers looks back. A
 * text that has neither for long is not code, and is cut anywhere.
 */

const LINE_START = /(?<=\n)\p{L}/u;
const WORD_START = /(?<=\S) (?=\p{L})/u;
/** The least characters of a block. */
const BLOCK = 2048;
/**
 * The most characters of a block. Splitting one takes up to 20 ms (DeepSeek's three patterns, one digit or Chinese
 * character after the other), and 4 MiB without a line break took 1.2 s as one block.
 */
const LONGEST_BLOCK = 4_096;

/** The end of the block that begins at `start`. */
export function blockEnd(text: string, start: number): number {
  const within = text.slice(start + BLOCK, start + LONGEST_BLOCK);
  const at = [LINE_START, WORD_START].map((pattern) => within.search(pattern)).find((index) => index >= 0);
  if (at !== undefined) return start + BLOCK + at;
  return text.length - start <= LONGEST_BLOCK ? text.length : withoutHalf(text, start + LONGEST_BLOCK);
}

/** The beginning of the block that ends at `end`. */
export function blockStart(text: string, end: number): number {
  if (end <= BLOCK) return 0;
  const from = Math.max(0, end - LONGEST_BLOCK);
  const within = text.slice(from, end - BLOCK + 3); // a letter may be two code units
  for (const pattern of [LINE_START, WORD_START]) {
    const last = [...within.matchAll(new RegExp(pattern, 'gu'))].at(-1);
    if (last !== undefined) return from + last.index;
  }
  return from === 0 ? 0 : withoutHalf(text, from);
}

/** `at`, or the position before it if that is inside a surrogate pair. */
export const withoutHalf = (text: string, at: number) =>
  /^[\udc00-\udfff]/.test(text.slice(at, at + 1)) ? at - 1 : at;

/** UTF-16 units of a word. */
const LONGEST_WORD = 128;
const PARTS = new RegExp(`.{1,${LONGEST_WORD}}`, 'gsu');

/**
 * A word in parts of 128 characters. Most words are a few letters long. One of a million would hold up the process for
 * seconds (3.4 s measured), and a merge that is lost between two parts does not matter in a text that is not code.
 */
export function wordParts(word: string): string[] {
  return word.length <= LONGEST_WORD ? [word] : word.match(PARTS)!;
}
