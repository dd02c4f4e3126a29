import { describe, expect, it } from 'vitest';
import { verdict } from '../../../bench/tables/measure.ts';

describe('verdict', () => {
  it.each([
    [{ low: 0.34, high: 0.4, coverage: 0.95 }, 0.36, 'yes'],
    [{ low: 0.2, high: 0.3, coverage: 0.95 }, 0.25, 'no'],
    [{ low: 0.3, high: 0.4, coverage: 0.95 }, 0.35, 'yes (uncertain)'],
    [{ low: 0.3, high: 0.4, coverage: 0.95 }, 0.31, 'no (uncertain)'],
    [{ low: 0.34, high: 0.4, coverage: 0.75 }, 0.36, 'yes (uncertain)'],
  ])('in the interval %j, a reduction of %d with 33 %% of the tokens cut is judged: %s', (interval, middle, said) =>
    expect(verdict(interval, middle, 2)).toBe(said),
  );
});
