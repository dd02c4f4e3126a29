/**
 * Which holes need other files: those with a name that stands in their chunks, and not in the code around them. Of most
 * lines a model can tell what they say from the code around them alone, so they teach a projector, and tell of it,
 * little. CrossCodeEval chooses its lines with the same intent, by static analysis of imports.
 */
import { identifiers } from '../../services/lib/rag/chunk.ts';
import type { SampleRow } from './sample-row.ts';

/** What a prompt of some 500 tokens has around a hole, in UTF-16 units. */
const AROUND = { before: 1_600, after: 800 };
/** Shorter names, such as `self` less one letter, stand anywhere. */
const FEWEST_CHARACTERS = 4;

const isName = (word: string) => word.length >= FEWEST_CHARACTERS && /^[\p{L}_]/u.test(word);

/** The names in a hole that its chunks have and the code around it has not. */
export function neededNames({
  prompt,
  right_context: right,
  groundtruth,
  crossfile_array: chunks,
}: Pick<SampleRow, 'prompt' | 'right_context' | 'groundtruth' | 'crossfile_array'>): string[] {
  const around = new Set(identifiers(`${prompt.slice(-AROUND.before)}\n${right.slice(0, AROUND.after)}`));
  const there = new Set(chunks.flatMap(identifiers));
  return identifiers(groundtruth).filter((word) => isName(word) && there.has(word) && !around.has(word));
}
