/** The figures of rows that were judged by this version, by an earlier one, or by both. */
import { describe, expect, test } from 'vitest';
import { type JudgedRow, resultsOf } from '../../../training/ablate/results.ts';
import type { Judgement } from '../../../training/evaluate/judge.ts';
import { smallOptions } from '../../support/training.ts';

const options = smallOptions({ data: 'train.jsonl', validation: undefined, to: 'ablation' });
const scores = { ce: 1, text: '', exactMatch: 0, editSimilarity: 0, authorsExactMatch: 0, authorsEditSimilarity: 0 };
type Cosines = Pick<Judgement, 'cosine' | 'cosineOfEmbeddings'>;
const measured = (cosine: number): Cosines => ({ cosine, cosineOfEmbeddings: cosine / 2 });
const ONE_CHUNK: Cosines = { cosine: null, cosineOfEmbeddings: null };
const EARLIER: Cosines = {};

/** The mean cosines of a row. */
function cosinesOf(cosines: readonly Cosines[]) {
  const judged: JudgedRow = {
    row: { id: 'row', title: 'Row', arm: 'compressed', changes: {}, paper: {} },
    inputs: { arm: 'compressed', model: 'm', data: 'd', settings: {} },
    judgements: cosines.map((one) => ({ ...scores, ...one })),
  };
  const [figures] = resultsOf([judged], options, { samples: 1, judged: cosines.length }).rows;
  return [figures!.cosine?.mean, figures!.cosineOfEmbeddings?.mean];
}

describe('the cosines of a row', () => {
  test('are means over the samples with two soft tokens', () => {
    expect(cosinesOf([measured(0.5), ONE_CHUNK, measured(0.25)])).toEqual([0.375, 0.1875]);
  });

  test('are not shown where no sample has two, or an earlier version judged some of the samples', () => {
    const none = [undefined, undefined];
    expect(cosinesOf([ONE_CHUNK, ONE_CHUNK])).toEqual(none);
    expect(cosinesOf([EARLIER, measured(0.5), measured(0.25)])).toEqual(none);
    expect(cosinesOf([EARLIER, EARLIER])).toEqual(none);
  });
});
