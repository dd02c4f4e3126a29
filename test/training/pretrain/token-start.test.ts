/** A projector that begins with the tokens of chunks, and the least squares that fit it. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { leastSquares } from '../../../training/pretrain/least-squares.ts';
import { windowsOf } from '../../../training/pretrain/token-start.ts';
import type { TrainOptions } from '../../../training/run/settings.ts';
import { train } from '../../../training/run/train.ts';
import { gaussians } from '../../../training/step/gaussians.ts';
import { temporaryFolder } from '../../support/models.ts';
import {
  never,
  resultsOf,
  silent,
  smallOptions,
  smallRow,
  TRAINING_TIMEOUT_MS,
  writeRows,
} from '../../support/training.ts';

const dir = await temporaryFolder();
const data = await writeRows(join(dir, 'train.jsonl'), [...new Array(12).keys()].map(smallRow));

test('least squares find the map that made the values, whatever was added to all of them', () => {
  const [rows, width, outputs] = [4_000, 5, 3];
  const features = gaussians(1, 0, rows * width, 1);
  const map = gaussians(2, 0, outputs * width, 1);
  const wanted = new Float32Array(rows * outputs);
  for (let row = 0; row < rows; row++) {
    for (let o = 0; o < outputs; o++) {
      wanted[row * outputs + o] = 7 + o;
      for (let i = 0; i < width; i++) wanted[row * outputs + o]! += map[o * width + i]! * features[row * width + i]!;
    }
  }
  const { weight } = leastSquares(features, width, wanted, outputs);
  // The penalty makes each a hundredth smaller.
  for (const [i, value] of weight.entries()) expect(Math.abs(value - map[i]! / 1.01)).toBeLessThan(0.01);
});

test('windows are those of the encoder: equal runs, of distinct tokens, and one token where there are fewer', () => {
  expect(windowsOf([1, 2, 2, 2, 5], 2)).toEqual([
    [1, 2],
    [2, 5],
  ]);
  expect(windowsOf([1, 2], 4)).toEqual([[1], [1], [2], [2]]);
  expect(windowsOf([4, 5, 6], 1)).toEqual([[4, 5, 6]]);
});

const run = (name: string, changes: Partial<TrainOptions>) => ({
  ...smallOptions({ data, validation: undefined, to: join(dir, name) }),
  steps: 1,
  weights: { ce: 1, reinforce: 0, kl: 0, alignment: 0 },
  ...changes,
});

test.each([
  [2, undefined],
  [3, 2],
] as const)(
  'a projector of %i layers begins near the tokens of its chunks, and the same command gives the same bits',
  { timeout: TRAINING_TIMEOUT_MS },
  async (layers, softPerChunk) => {
    const said: string[] = [];
    const made = ['once', 'again'].map((name) =>
      run(`${name}-${layers}`, { layers, start: 'tokens', encoderChoices: { maxTokens: 32, softPerChunk } }),
    );
    for (const options of made)
      await train(
        options,
        silent(undefined, (text) => said.push(text)),
        never,
      );
    const cosine = Number(/a cosine of ([\d.]+)/.exec(said.join('\n'))?.[1]);
    expect(cosine).toBeGreaterThan(0.8);
    const [once, again] = await Promise.all(made.map(resultsOf));
    expect(again).toEqual(once);
    // A run that begins with random numbers is another one.
    await expect(train({ ...made[0]!, start: undefined }, silent(), never)).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringContaining('"start":"tokens"'),
    });
  },
);
