/** Scores of completed lines are those of the goldens, which the authors' formulas gave. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { authorsScores, paperScores, rolloutScores } from '../../../training/metrics/lines.ts';
import { evaluationCases } from '../../support/evaluation-goldens.ts';

interface LineCase {
  readonly id: string;
  readonly prediction: string;
  readonly groundtruth: string;
  readonly expected: {
    readonly authors: { readonly prediction: string; readonly em: number; readonly es: number; readonly fuzz: number };
    readonly paper: { readonly em: number; readonly es: number };
    readonly reward: { readonly text: string; readonly em: number; readonly es: number; readonly reward: number };
  };
}

const lines = evaluationCases<LineCase>('line');

test('there are goldens of lines', () => expect(lines).toHaveLength(20));

describe.each(lines)('golden $id', ({ prediction, groundtruth, expected: { authors, paper, reward } }) => {
  test("has the scores of the authors' evaluation", () => {
    const scores = authorsScores(prediction, groundtruth);
    expect(scores).toMatchObject({ text: authors.prediction, exactMatch: authors.em, fuzz: authors.fuzz });
    expect(scores.editSimilarity).toBeCloseTo(authors.es, 12);
  });

  test('has the scores of the paper', () => {
    const scores = paperScores(prediction, groundtruth);
    expect(scores.exactMatch).toBe(paper.em);
    expect(scores.editSimilarity).toBeCloseTo(paper.es, 12);
  });

  test('has the reward of a rollout', () => {
    const scores = rolloutScores(prediction, groundtruth);
    expect(scores).toMatchObject({ text: reward.text, exactMatch: reward.em });
    expect(scores.editSimilarity).toBeCloseTo(reward.es, 12);
    expect(scores.exactMatch + scores.editSimilarity).toBeCloseTo(reward.reward, 12);
  });
});

test('a byte order mark is not white space, and a separator of records is, as in Python', () => {
  expect(paperScores('\ufeffx', 'x').exactMatch).toBe(0);
  expect(paperScores('\x1cx\x85', 'x').exactMatch).toBe(1);
});

test('whole percents are rounded half to even', () => {
  // 2 · 1 common character of 16, and 2 · 3 of 16: 12.5 and 37.5 percent.
  expect(authorsScores('axxxxxxx', 'ayyyyyyy').fuzz).toBe(12);
  expect(authorsScores('abcxxxxx', 'abcyyyyy').fuzz).toBe(38);
});

test('the similarity of lines is symmetric, at most 1, and 1 for equal ones alone', () => {
  const line = fc.stringMatching(/^[ab😀]{1,8}$/u);
  fc.assert(
    fc.property(line, line, (a, b) => {
      for (const scores of [paperScores, authorsScores, rolloutScores]) {
        const { editSimilarity } = scores(a, b);
        expect(editSimilarity).toBe(scores(b, a).editSimilarity);
        expect(editSimilarity).toBeGreaterThanOrEqual(0);
        expect(editSimilarity === 1).toBe(a === b);
      }
    }),
  );
});
