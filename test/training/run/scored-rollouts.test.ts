/** The rewards of rollouts: their weights, and what a baseline makes of them. */
import { describe, expect, test } from 'vitest';
import type { Tokenizer } from '../../../services/lib/text/tokenizer.ts';
import { ScoredRollouts } from '../../../training/run/scored-rollouts.ts';
import type { Continued, Rollouts } from '../../../training/step/rollouts.ts';
import type { Sample } from '../../../training/step/rows.ts';

const END = 0;
const WORDS = ['', 'x = 1', 'x = 2', '\nmore'];
const tokenizer = { decode: (ids: readonly number[]) => ids.map((id) => WORDS[id]).join('') } as unknown as Tokenizer;
const samples: Sample[] = [0, 1].map((i) => ({ name: `${i}`, promptIds: [1], softPositions: [], targetIds: [1] }));
const soft = samples.map(() => new Float32Array(0));
const asked: (readonly number[])[] = [];
const greedy = [
  [2, END],
  [1, 3, END],
];
const drawn = [
  [1, END],
  [2, END],
];
const rollouts = {
  greedy: async () => greedy,
  all: async (prompts: readonly Continued[]) => {
    expect(prompts.map(({ samplings }) => samplings.map(({ temperature }) => temperature))).toEqual([
      [0, 0.9],
      [0, 0.9],
    ]);
    asked.push(prompts.map(({ samplings }) => samplings[1]!.seed));
    return prompts.map((_, i) => [greedy[i], drawn[i]]);
  },
} as unknown as Rollouts;
const scored = (reward: { em: number; es: number }, baseline: 'none' | 'scst', seed = 5) =>
  new ScoredRollouts(rollouts, tokenizer, new Set([END]), () => 'x = 1', { reward, baseline, seed });

describe('rollouts', () => {
  test('greedy ones are worth the weighted sum of exact match and edit similarity, with the token that ended them', async () => {
    expect(await scored({ em: 2, es: 10 }, 'none').rollOut(samples, soft, 0)).toEqual([
      { ids: [2, END], reward: 8 },
      { ids: [1, 3, END], reward: 12 },
    ]);
  });

  test('drawn ones are rewarded for what they are better than the greedy ones, and reported with what they are worth', async () => {
    expect(await scored({ em: 2, es: 10 }, 'scst').rollOut(samples, soft, 0)).toEqual([
      { ids: [1, END], worth: 12, reward: 4 },
      { ids: [2, END], worth: 8, reward: -4 },
    ]);
  });

  test('each place of each step has a seed of its own, which depends on that of the run', async () => {
    asked.length = 0;
    for (const [step, seed] of [
      [0, 5],
      [1, 5],
      [0, 6],
    ] as const) {
      await scored({ em: 1, es: 1 }, 'scst', seed).rollOut(samples, soft, step);
    }
    const all = asked.flat();
    expect(new Set(all).size).toBe(6);
    expect(all.every((seed) => Number.isSafeInteger(seed) && seed >= 0)).toBe(true);
    asked.length = 0;
    await scored({ em: 1, es: 1 }, 'scst', 5).rollOut(samples, soft, 1);
    expect(asked.flat()).toEqual(all.slice(2, 4));
  });
});
