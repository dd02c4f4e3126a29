/** Which of two validations is better, and how long a run waits for one. */
import { describe, expect, test } from 'vitest';
import { isBetter, judged, NO_STANDING, type Standing } from '../../../training/run/best.ts';
import { collapseAlarm } from '../../../training/run/collapse.ts';
import { spaced, type Validation } from '../../../training/run/validation.ts';

const figures = (validEm: number, validEs: number, validCe: number, meanCosine = 0.5): Validation => ({
  validEm,
  validEs,
  validCe,
  meanCosine,
  meanCosineOfEmbeddings: 0.4,
});

describe('validations', () => {
  test('exact match decides, then edit similarity, then cross-entropy', () => {
    const rising = [figures(0, 0, 2), figures(0, 0, 1), figures(0, 0.2, 3), figures(0.1, 0.1, 4), figures(0.2, 0, 5)];
    for (const [i, a] of rising.entries()) {
      for (const [j, b] of rising.entries()) expect(isBetter(a, b), `${i} ${j}`).toBe(i > j);
    }
  });

  test('the first of equals stays the best, and those after it are counted until one is better', () => {
    const found: Standing[] = [];
    let standing = NO_STANDING;
    for (const [i, em] of [0.1, 0.3, 0.3, 0.2, 0.4].entries()) {
      standing = judged(standing, i + 1, figures(em, 0, 1));
      found.push(standing);
    }
    expect(found.map(({ best, stale }) => [best!.step, stale])).toEqual([
      [1, 0],
      [2, 0],
      [2, 1],
      [2, 2],
      [5, 0],
    ]);
  });

  test('some samples of a validation are evenly spaced, so that they are spread over the repositories', () => {
    const rows = Array.from({ length: 10 }, (_, i) => i);
    expect(spaced(rows, undefined)).toEqual(rows);
    expect(spaced(rows, 12)).toEqual(rows);
    expect(spaced(rows, 4)).toEqual([0, 2, 5, 7]);
  });

  test('a collapsed projector is named with what to do, unless its embeddings are as alike', () => {
    expect(collapseAlarm(figures(0, 0, 1, 0.98))).toBeUndefined();
    expect(collapseAlarm(figures(0, 0, 1, 0.985))).toMatch('mean cosine of 0.985; raise --alignment');
    const alike = { ...figures(0, 0, 1, 0.99), meanCosineOfEmbeddings: 0.99 };
    expect(collapseAlarm(alike)).toMatch('choose another encoder');
  });
});
