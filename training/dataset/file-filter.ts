/** Which files of a repository are code that a person wrote; the bounds are those of StarCoder's data. */

const LONGEST_LINE = 1_000;
const LONGEST_MEAN_LINE = 100;
const FEWEST_WORD_CHARACTERS = 0.25;
/** Marks that generators leave, beyond those which indexing leaves out as well. */
const MARK = /auto-?generated|automatically generated|generated (?:by|from|file)|do not (?:edit|modify)/i;
const MARK_LINES = 5;
const WORD_CHARACTER = /[\p{L}\p{N}]/gu;

export type FileReason =
  /** Too large, binary, not UTF-8, or marked as generated, as for indexing. */
  | 'unwanted'
  | 'generated'
  /** A line of more than 1,000 characters, or lines of more than 100 in the mean. */
  | 'minified'
  /** Less than a quarter of its characters are letters or digits. */
  | 'data'
  | 'empty'
  /** Parsing takes too long. */
  | 'unparsable'
  /** Equal to a file that came earlier. */
  | 'copy'
  /** Nearly equal to a file of the validation split. */
  | 'near_copy';

/** Why a file is left out by its text alone; undefined where it is not. */
export function unwantedText(text: string): FileReason | undefined {
  const lines = text.split('\n');
  if (text.trim() === '') return 'empty';
  if (MARK.test(lines.slice(0, MARK_LINES).join('\n'))) return 'generated';
  if (text.length / lines.length > LONGEST_MEAN_LINE || lines.some((line) => line.length > LONGEST_LINE)) {
    return 'minified';
  }
  const words = text.match(WORD_CHARACTER)?.length ?? 0;
  return words < FEWEST_WORD_CHARACTERS * text.length ? 'data' : undefined;
}
