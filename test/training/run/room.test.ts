/** The room for passes: what reads the chunks as text counts with its tokens, in positions and in memory. */
import { expect, test } from 'vitest';
import { publishedSpec } from '../../../services/lib/model/checkpoint/synth.ts';
import { GIB } from '../../../services/lib/process/memory.ts';
import { fitted, modelPlace } from '../../../training/run/room.ts';
import type { TrainOptions } from '../../../training/run/settings.ts';
import { CE_ALONE, smallOptions } from '../../support/training.ts';

const spec = publishedSpec('qwen2.5-coder-0.5b');
const options = (changes: Partial<TrainOptions>): TrainOptions => ({
  ...smallOptions({ data: 'd', validation: undefined, to: 't' }),
  promptTokens: 1000,
  targetTokens: 40,
  rolloutTokens: 50,
  textTokens: 2000,
  weights: CE_ALONE,
  ...changes,
});
const place = (changes: Partial<TrainOptions>, maxPositions: number) => {
  const network = { spec: { ...spec, maxPositions }, weights: undefined as never };
  return modelPlace(options(changes), network, { folder: 'f' });
};

test.each([
  ['cross-entropy', {}, 1040],
  ['a validation', { validation: 'v' }, 1090],
  ['rollouts', { weights: { ...CE_ALONE, reinforce: 1 } }, 1090],
  ['a teacher', { weights: { ...CE_ALONE, kl: 1 } }, 3040],
  ['distillation', { weights: { ...CE_ALONE, distill: 1 } }, 3050],
] as const)('with %s a model needs as many positions as its longest pass has', (_, changes, rows) => {
  expect(place(changes, rows).maxPositions).toBeGreaterThanOrEqual(1040);
  expect(() => place(changes, rows - 1)).toThrow(
    new RegExp(`--prompt-tokens 1000: a sample may take ${rows} positions .* has ${rows - 1}: use at most 999$`),
  );
  expect(() => place(changes, rows - 1000)).toThrow(/shorten --target-tokens, --rollout-tokens or --text-tokens/);
});

test('a teacher takes memory for the text that it reads', () => {
  const least = (changes: Partial<TrainOptions>) => {
    for (let limit = GIB; ; limit += GIB / 32) {
      try {
        fitted(options({ ...changes, memory: limit }), spec);
        return limit / GIB;
      } catch {}
    }
  };
  const taught = { weights: { ...CE_ALONE, kl: 1 } };
  const [short, long] = [least({ ...taught, textTokens: 100 }), least(taught)];
  // 1,900 tokens through one layer, in 32-bit floats: 0.15 GiB.
  expect(long - short).toBeGreaterThan(0.1);
  expect(long - short).toBeLessThan(0.25);
  expect(least({ textTokens: 100 })).toBe(least({}));
});

test('completions for distillation are fewer at a time where the memory is short, and refused where it has none', () => {
  const distilled = { weights: { ...CE_ALONE, distill: 1 }, textTokens: 20_000, recompute: true };
  const slots = (gib: number | undefined) => fitted(options({ ...distilled, memory: gib && gib * GIB }), spec);
  expect(slots(undefined)).toEqual({ recompute: true, rolloutSlots: 0 });
  expect(slots(20)).toEqual({ recompute: true, rolloutSlots: 0 });
  expect(slots(9).completionSlots).toBe(8);
  expect(slots(8).completionSlots).toBe(4);
  expect(slots(6).completionSlots).toBe(2);
  expect(() => slots(4)).toThrow(
    /--memory of 4.0 GiB: completions for --distill take 4\.\d GiB at least: .* --text-tokens/,
  );
});
