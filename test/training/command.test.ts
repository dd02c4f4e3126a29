/** The options of `llavacode train`: the sum of a reward, and presets. */
import type { Command } from 'commander';
import { describe, expect, test, vi } from 'vitest';
import { trainCommand } from '../../training/command.ts';

const runTrain = vi.hoisted(() => vi.fn());
vi.mock('../../training/run/terminal.ts', () => ({ runTrain }));

const REQUIRED = ['--llm', 'l', '--data', 'd', '--to', 't'];
function quiet(): Command {
  const silent = { writeErr: () => {}, writeOut: () => {} };
  return trainCommand().exitOverride().configureOutput(silent);
}
/** The options of the run that the words ask for. */
async function asked(...words: string[]) {
  runTrain.mockClear();
  await quiet().parseAsync([...REQUIRED, ...words], { from: 'user' });
  return runTrain.mock.calls[0]![0];
}
const refusal = (...words: string[]) =>
  quiet()
    .parseAsync([...REQUIRED, ...words], { from: 'user' })
    .then(
      () => 'accepted',
      ({ message }: Error) => message,
    );

describe('a reward', () => {
  test('a reward is a weighted sum of exact match and edit similarity', async () => {
    expect((await asked()).reward).toEqual({ em: 1, es: 1 });
    for (const [sum, em, es] of [
      ['em', 1, 0],
      ['2*em+es', 2, 1],
      [' 0.5 * es + em ', 1, 0.5],
      ['es+es', 0, 2],
    ] as const) {
      expect((await asked('--reward', sum)).reward, sum).toEqual({ em, es });
    }
  });

  test.each(['', 'bleu', 'em-es', '2em', 'em+', '*es', '1e9*em', '0*em', 'em,es'])(
    'the reward %j is refused with an example',
    async (sum) => {
      expect(await refusal('--reward', sum)).toMatch(/must be a sum of em and es|always 0/);
    },
  );
});

test('memory is a size in GiB or MiB', async () => {
  expect((await asked('--memory', '7.5g')).memory).toBe(7.5 * 2 ** 30);
  expect((await asked('--memory', '900M')).memory).toBe(900 * 2 ** 20);
  for (const size of ['8', '0g', 'g', '-1g', '8t']) expect(await refusal('--memory', size), size).toMatch('such as 8g');
});

describe('a preset', () => {
  test("the paper's settings for 1.5B and 7B are those of its Table 7", async () => {
    expect(await asked('--preset', 'paper-1.5b')).toMatchObject({
      weights: { ce: 0.9, reinforce: 0.1, kl: 0, alignment: 0.1 },
      learningRate: 1e-3,
      batch: 66,
      warmup: 0.03,
      schedule: 'cosine',
      epochs: 3,
      layers: 3,
      chunks: 10,
    });
    expect(await asked('--preset', 'paper-7b')).toMatchObject({
      weights: { ce: 0.9, reinforce: 0.05, kl: 0, alignment: 0.2 },
      learningRate: 1e-4,
      batch: 64,
      warmup: 0.04,
    });
  });

  test('options that are given go before those of the preset, steps before its epochs', async () => {
    const found = await asked('--preset', 'paper-7b', '--batch', '8', '--alignment', '0.5', '--steps', '10');
    expect(found).toMatchObject({ batch: 8, weights: { alignment: 0.5, reinforce: 0.05 }, steps: 10 });
    expect(found.epochs).toBeUndefined();
    expect((await asked('--preset', 'paper-7b', '--epochs', '0.5')).epochs).toBe(0.5);
  });

  test('a preset that does not exist, and epochs beside steps, are refused', async () => {
    expect(await refusal('--preset', 'paper-14b')).toMatch('Allowed choices are paper-1.5b, paper-7b');
    expect(await refusal('--epochs', '2', '--steps', '3')).toMatch('cannot be used with');
  });
});
