/** The sentences that ask for the text behind a soft token. Which one stands in a sample is drawn by the run's seed. */
import { wordsAt } from '../../services/lib/numeric/random.ts';

/** As comments, since code comes before the cursor when the projector is used. */
export const CUES: readonly string[] = [
  '# The code above says:\n',
  '# Write out the snippet that precedes this line.\n',
  '# Another way to write the fragment above:\n',
  '# The full source of the chunk above:\n',
  '# Repeat the code from the context.\n',
  '# This is the text of the retrieved fragment:\n',
  '# Restore the lines that were compressed.\n',
  '# In full, the context reads:\n',
  '# Copy of the code above:\n',
  '# Expanded, the fragment is:\n',
  '# The same code, token by token:\n',
  '# What the file of the context contains:\n',
  '# Unpack the context.\n',
  '# These lines are given in the context:\n',
  '# Source code of the summary above:\n',
  '# Recover the original code.\n',
];

/**
 * The cue at a place of a run.
 * @param place samples before it, counted over all steps; below 2^32
 */
export const cueAt = (seed: number, place: number): string => CUES[wordsAt(seed, place)[2] % CUES.length]!;
