/** Rates over items are those of the goldens. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ratesOf } from '../../../training/metrics/rates.ts';
import { GOLDENS } from '../../support/models.ts';

interface RatesCase {
  readonly kind: string;
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

const { cases } = JSON.parse(readFileSync(join(GOLDENS, 'evaluation/cases.json'), 'utf8')) as { cases: RatesCase[] };
const rates = cases.filter(({ kind }) => kind === 'resilience');

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
