/**
 * Where the holes are that a model learns to fill. A file is cut into candidate blocks of {@link BLOCK_LINES} lines of
 * code, and a block gives at most one hole: n lines from a line of the block on, with n from a Poisson distribution
 * clamped to 1 to 9, as in §4.1 of the paper. Blank lines do not count. A line is counted from 0.
 */
import type { RandomStream } from './random.ts';

export const MOST_LINES = 9;
/** Lines of a candidate block, without blank ones. */
const BLOCK_LINES = 10;
/** A hole has so many lines with text before it: with less nobody could tell what comes. */
const LINES_BEFORE = 5;
/** Longer holes are data rather than code, in UTF-16 units; nine lines of code have some 350. */
const MOST_CHARACTERS = 1_000;
/** A hole begins with a line of at least so many characters: `}` and `else:` say nothing. */
const FEWEST_CHARACTERS = 8;

export interface Hole {
  readonly start: number;
  /** The line after its last one, which is not blank. */
  readonly end: number;
  /** Its lines without blank ones. */
  readonly lines: number;
}

/** Lines of code in which a hole may begin. */
export type Block = readonly number[];

const isBlank = (line: string) => line.trim() === '';

/** @param isCode whether a line belongs to code rather than to a comment. */
export function candidateBlocks(lines: readonly string[], isCode: (line: number) => boolean): Block[] {
  const written = lines.flatMap((line, i) => (isBlank(line) ? [] : [i]));
  const blocks: Block[] = [];
  for (let at = LINES_BEFORE; at < written.length; at += BLOCK_LINES) {
    const block = written
      .slice(at, at + BLOCK_LINES)
      .filter((line) => isCode(line) && lines[line]!.trim().length >= FEWEST_CHARACTERS);
    if (block.length > 0) blocks.push(block);
  }
  return blocks;
}

/**
 * A hole that begins in a block; undefined where the file ends before the hole does, or the hole holds no code.
 * @param meanLines the mean of the Poisson distribution, before it is clamped.
 */
export function drawHole(
  lines: readonly string[],
  block: Block,
  meanLines: number,
  random: RandomStream,
): Hole | undefined {
  const count = Math.min(MOST_LINES, Math.max(1, random.poisson(meanLines)));
  return holeAt(lines, block[random.below(block.length)]!, count);
}

/** A hole of `count` lines with text; undefined as for {@link drawHole}. */
export function holeAt(lines: readonly string[], start: number, count: number): Hole | undefined {
  let end = start;
  let characters = 0;
  for (let found = 0; found < count; end++) {
    if (end === lines.length) return undefined;
    if (!isBlank(lines[end]!)) found++;
    characters += lines[end]!.length + 1;
  }
  return characters > MOST_CHARACTERS ? undefined : { start, end, lines: count };
}
