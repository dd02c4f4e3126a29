/**
 * How well a line, or a few of them, was completed: exact match and edit similarity, as the paper defines them, as the
 * authors' code computes them, and as it rewards rollouts in training. Lengths and distances count code points.
 *
 * All functions are pure, and a mean over a set is the plain mean of its items.
 */
import { strip, wordsOf } from './white-space.ts';

export interface LineScores {
  /** What was compared: the part of the prediction that counts. */
  readonly text: string;
  /** 0 or 1. */
  readonly exactMatch: number;
  /** 1 - Levenshtein distance / length of the longer text: from 0 to 1. */
  readonly editSimilarity: number;
}

const filledLines = (text: string) => text.split('\n').filter((line) => strip(line) !== '');

/** The paper's definition: equal characters but for white space at both ends; two empty texts are equal. */
export function paperScores(prediction: string, target: string): LineScores {
  const [ours, theirs] = [strip(prediction), strip(target)];
  return { text: ours, exactMatch: ours === theirs ? 1 : 0, editSimilarity: similarity(ours, theirs, 1) };
}

/**
 * The authors' evaluation: the prediction is cut to as many filled lines as the target has, and matches where its
 * tokens do; two empty texts have a similarity of 0.
 * @returns also `fuzz`, the second similarity that some benchmarks print: whole percents, a substitution costs 2 edits
 */
export function authorsScores(prediction: string, target: string): LineScores & { readonly fuzz: number } {
  const text = filledLines(prediction).slice(0, filledLines(target).length).join('\n');
  const [ours, theirs] = [strip(text), strip(target)];
  return {
    text,
    exactMatch: sameTokens(text, target) ? 1 : 0,
    editSimilarity: similarity(ours, theirs, 0),
    fuzz: fuzzOf(ours, theirs),
  };
}

/** What a rollout writes after one of these belongs to another file, or is padding. */
const MARKERS = ['<|file_sep|><|fim_prefix|>', '<|fim_pad|>'];

/**
 * The authors' reward of a rollout, which is `exactMatch + editSimilarity`: of as many lines as the target has, blank
 * ones counted, and without removing white space.
 * @param written the rollout's text, without the token that ended it
 */
export function rolloutScores(written: string, target: string): LineScores {
  const before = MARKERS.reduce((text, marker) => text.split(marker, 1)[0]!, written);
  const text = before.split('\n').slice(0, target.split('\n').length).join('\n');
  return { text, exactMatch: sameTokens(text, target) ? 1 : 0, editSimilarity: similarity(text, target, 0) };
}

/** Words and signs without regard to white space, camel case and the kind of quotes. */
const tokensOf = (text: string) =>
  wordsOf(
    text
      .replace(/([^A-Za-z0-9_])/gu, ' $1 ')
      .replace(/([a-z])([A-Z])/g, '$1 $2')
      .replace(/["']/g, '`'),
  );

function sameTokens(a: string, b: string): boolean {
  const [ours, theirs] = [tokensOf(a), tokensOf(b)];
  return ours.length === theirs.length && ours.every((token, i) => token === theirs[i]);
}

/** 1 - Levenshtein distance / length of the longer text, from 0 to 1; `ofEmpty` where both are empty. */
export function similarity(a: string, b: string, ofEmpty: number): number {
  const [ours, theirs] = [[...a], [...b]];
  const longer = Math.max(ours.length, theirs.length);
  return longer === 0 ? ofEmpty : 1 - distance(ours, theirs, 1) / longer;
}

/** The similarity of two texts in whole percents; a substitution costs 2 edits. White space at the ends counts. */
export function fuzzOf(a: string, b: string): number {
  if (a === b) return 100;
  const [ours, theirs] = [[...a], [...b]];
  if (ours.length === 0 || theirs.length === 0) return 0;
  const total = ours.length + theirs.length;
  // Where a substitution costs as much as a removal and an insertion, total - distance = 2 · longest common sequence.
  return roundHalfToEven((100 * (total - distance(ours, theirs, 2))) / total);
}

/** The fewest edits between two texts; a substitution costs 1 or 2, an insertion or a removal 1. */
function distance(a: readonly string[], b: readonly string[], substitution: number): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (const [i, x] of a.entries()) {
    const next = [i + 1];
    for (const [j, y] of b.entries()) {
      next.push(Math.min(row[j + 1]! + 1, next[j]! + 1, row[j]! + (x === y ? 0 : substitution)));
    }
    row = next;
  }
  return row[b.length]!;
}

/** As Python's `round`: 0.5 becomes 0 and 1.5 becomes 2. */
function roundHalfToEven(value: number): number {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}
