/** Rates over items are those of the goldens. */
import { expect, test } from 'vitest';
import { ratesOf } from '../../../training/metrics/rates.ts';
import { evaluationCases } from '../../support/evaluation-goldens.ts';

interface RatesCase {
  readonly id: string;
  readonly right_without: number[];
  readonly right_with: number[];
  readonly expected: {
    readonly resilience: number | null;
    readonly boost: number | null;
    readonly both_of_all: number;
    readonly no_degradation: number;
    readonly denominators: [number, number, number];
  };
}

const rates = evaluationCases<RatesCase>('resilience');

test('there are goldens of rates', () => expect(rates).toHaveLength(2));

test.each(rates)('golden $id has its rates', ({ right_without, right_with, expected }) => {
  const [rightWithout, wrongWithout] = expected.denominators;
  const found = ratesOf(right_without, right_with);
  expect(found).toEqual({
    resilience: expected.resilience,
    boost: expected.boost,
    bothOfAll: expected.both_of_all,
    noDegradation: expected.no_degradation,
    rightWithout,
    wrongWithout,
  });
});
