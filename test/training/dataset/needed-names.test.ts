/** Holes that need another file. */
import { expect, test } from 'vitest';
import { neededNames } from '../../../training/dataset/needed-names.ts';

const sample = {
  prompt: 'import shop\n\ntotal = 0\n',
  right_context: '\nprint(total)\n',
  groundtruth: 'total = shop.round_price(total)',
  crossfile_array: ['shop.py\ndef round_price(price):\n    return price'],
};

test('a name of a chunk that the code around lacks is needed', () => {
  expect(neededNames(sample)).toEqual(['round_price']);
});

test.each([
  ['no chunk has it', { crossfile_array: ['shop.py\nrounding = 1'] }],
  ['it stands before the hole', { prompt: `${sample.prompt}round_price(1)\n` }],
  ['it stands after the hole', { right_context: '\nround_price(1)' }],
  ['it is short', { groundtruth: 'total = fx(total)', crossfile_array: ['fx.py\ndef fx(x): pass'] }],
  ['it is a number', { groundtruth: 'total = 12345', crossfile_array: ['a.py\na = 12345'] }],
])('a name is not needed where %s', (_, changes) => {
  expect(neededNames({ ...sample, ...changes })).toEqual([]);
});

test('a name that is far from the hole is needed: no prompt has it', () => {
  const far = { prompt: `round_price(1)\n${'total = shop.total\n'.repeat(100)}` };
  expect(neededNames({ ...sample, ...far })).toEqual(['round_price']);
});
