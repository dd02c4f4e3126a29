/** What a run says of a step. */
import { expect, test } from 'vitest';
import { bar, lossWords } from '../../../training/run/step-words.ts';

const FIGURES = {
  loss: 2,
  ce: 1.5,
  kl: 0.25,
  alignment: 0.3,
  distill: 1,
  reinforce: -0.7,
  reward: 0.4,
  gradientNorm: 9,
};
const NONE = { ce: 0, reinforce: 0, kl: 0, alignment: 0 };

test('a bar is as full as steps are made, and full at the last one alone', () => {
  expect(bar(0, 1000)).toBe(`${'░'.repeat(20)} 0 %`);
  expect(bar(260, 1000)).toBe(`${'█'.repeat(5)}${'░'.repeat(15)} 26 %`);
  expect(bar(999, 1000)).toBe(`${'█'.repeat(19)}░ 99 %`);
  expect(bar(1000, 1000)).toBe(`${'█'.repeat(20)} 100 %`);
});

test('every term of the loss that has a weight is named, and cross-entropy always', () => {
  expect(lossWords(FIGURES, NONE)).toBe('loss 2.0000, CE 1.5000');
  const all = { ce: 1, reinforce: 0.1, kl: 2, alignment: 0.1, distill: 1 };
  expect(lossWords(FIGURES, all)).toBe(
    'loss 2.0000, CE 1.5000, KL 0.2500, alignment 0.3000, distillation 1.0000, REINFORCE -0.7000, reward 0.4000',
  );
  expect(lossWords({ loss: 1, mse: 0.5, cosineDistance: 0.5 }, all)).toBe(
    'loss 1.0000, mean square 0.5000, 1 - cosine 0.5000',
  );
});
