/** The arithmetic of a sweep: rounds, draws, and the best settings as a command line. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { budgetOf, roundsOf } from '../../../training/sweep/halving.ts';
import { drawn, type Range, withSettings } from '../../../training/sweep/space.ts';
import { shellLine } from '../../../training/sweep/table.ts';

describe('successive halving', () => {
  test('nine trials become three and one, with three times the steps each time', () => {
    const rounds = roundsOf(9, 90, 3, 10);
    expect(rounds).toEqual([
      { trials: 9, steps: 10 },
      { trials: 3, steps: 30 },
      { trials: 1, steps: 90 },
    ]);
    expect(budgetOf(rounds)).toBe(9 * 10 + 3 * 20 + 1 * 60);
    expect(roundsOf(2, 5, 3, 5)).toEqual([{ trials: 2, steps: 5 }]);
  });

  test('each round has fewer trials and more steps, ends with a validation, and the last one has all steps', () => {
    const whole = (max: number) => fc.integer({ min: 1, max });
    fc.assert(
      fc.property(
        whole(200),
        whole(3000),
        fc.integer({ min: 2, max: 5 }),
        whole(50),
        (trials, steps, factor, every) => {
          let rounds: ReturnType<typeof roundsOf>;
          try {
            rounds = roundsOf(trials, steps, factor, every);
          } catch (error) {
            // What it asks for is enough.
            const least = Number(/give (\d+) steps/.exec((error as Error).message)![1]);
            expect(least).toBeGreaterThan(steps / 2);
            roundsOf(trials, least, factor, every);
            return;
          }
          expect(rounds[0]!.trials).toBe(trials);
          expect(rounds.at(-1)!.steps).toBe(steps);
          expect(rounds.at(-1)!.trials).toBeLessThan(factor);
          for (const [i, round] of rounds.entries()) {
            if (i < rounds.length - 1) expect(round.steps % every).toBe(0);
            if (i === 0) continue;
            expect(round.trials).toBe(Math.floor(rounds[i - 1]!.trials / factor));
            expect(round.steps).toBeGreaterThan(rounds[i - 1]!.steps);
          }
        },
      ),
    );
  });

  test('too few steps for the rounds are refused with what would do', () => {
    expect(() => roundsOf(9, 40, 3, 10)).toThrow(
      expect.objectContaining({ code: 'config_invalid', message: expect.stringMatching(/--steps 40 .*give 90 steps/) }),
    );
  });
});

describe('the settings of a trial', () => {
  const ranges: readonly Range[] = [
    { name: 'learning-rate', low: 1e-5, high: 1e-3, log: true },
    { name: 'ce', low: 0.2, high: 0.6, log: false },
  ];
  const draws = Array.from({ length: 2000 }, (_, trial) => drawn(ranges, 5, trial));

  test('they lie in their ranges, differ between trials, and depend on the seed alone', () => {
    for (const settings of draws) {
      expect(settings['learning-rate']).toBeGreaterThanOrEqual(1e-5);
      expect(settings['learning-rate']).toBeLessThanOrEqual(1e-3);
      expect(settings.ce).toBeGreaterThanOrEqual(0.2);
      expect(settings.ce).toBeLessThanOrEqual(0.6);
    }
    expect(new Set(draws.map(({ ce }) => ce)).size).toBeGreaterThan(1000);
    expect(drawn(ranges, 5, 17)).toEqual(draws[17]);
    expect(drawn(ranges, 6, 17)).not.toEqual(draws[17]);
  });

  test('half of those of a logarithmic range lie below its geometric mean, of another below its middle', () => {
    const below = (name: 'learning-rate' | 'ce', middle: number) =>
      draws.filter((settings) => settings[name]! < middle).length;
    // A binomial count of 2,000 has a standard deviation of 22.
    expect(Math.abs(below('learning-rate', 1e-4) - 1000)).toBeLessThan(110);
    expect(Math.abs(below('ce', 0.4) - 1000)).toBeLessThan(110);
  });

  test('they replace those of the options, and leave the others', () => {
    const weights = { ce: 0.9, reinforce: 0.1, kl: 0, alignment: 0.1 };
    expect(withSettings({ learningRate: 1, weights, seed: 3 }, { 'learning-rate': 2, distill: 0.3, ce: 0 })).toEqual({
      learningRate: 2,
      weights: { ...weights, ce: 0, distill: 0.3 },
      seed: 3,
    });
    expect(withSettings({ learningRate: 1, weights }, {})).toEqual({ learningRate: 1, weights });
  });
});

test('a command line is quoted where a shell would read something else', () => {
  expect(shellLine(['llavacode', '--data', "it's here.jsonl", '--reward', '2*em+es', '--ce', '1e-3'])).toBe(
    "llavacode --data 'it'\\''s here.jsonl' --reward '2*em+es' --ce 1e-3",
  );
});
