/** Distillation is the cross-entropy of another continuation, which the target and the rollout do not see. */
import { afterAll, expect, test } from 'vitest';
import { type LossWeights, ModelPass, type PassResult } from '../../../training/step/pass.ts';
import type { Rollout, Sample } from '../../../training/step/rows.ts';
import { temporaryFolder } from '../../support/models.ts';
import { openTrainingGoldens, relativeError } from '../../support/training-goldens.ts';

const folder = await temporaryFolder();
const goldens = await openTrainingGoldens();
afterAll(() => goldens.close());
const { facts, spec, weights: source, samples } = goldens;
const place = { folder, threads: 1, spec, weights: source, layers: 'fp32', maxPositions: 512 } as const;
const NONE: LossWeights = { ce: 0, reinforce: 0, kl: 0, alignment: 0 };
const [sample] = samples;
const [{ rollout_ids: distilledIds }, { rollout_ids: written }] = facts.samples as [
  (typeof facts.samples)[0],
  (typeof facts.samples)[0],
];
const soft = Float32Array.from(
  { length: sample!.softPositions.length * spec.hidden },
  (_, i) => Math.sin(i * 12.9898) / 8,
);

async function pass(weights: LossWeights, one: Sample, rollout?: Rollout): Promise<PassResult> {
  const model = await ModelPass.load(place, weights);
  try {
    return await model.run(one, soft, 1, { rollout });
  } finally {
    model.dispose();
  }
}

test('the loss and its gradient are those of a sample whose target is the continuation', async () => {
  const distilled = await pass({ ...NONE, distill: 1 }, { ...sample!, distilledIds });
  const asTarget = await pass({ ...NONE, ce: 1 }, { ...sample!, targetIds: distilledIds });
  expect(Math.abs(distilled.distill - asTarget.ce)).toBeLessThan(1e-5);
  expect(relativeError(distilled.gradient, asTarget.gradient)).toBeLessThan(1e-5);
  expect(asTarget.distill).toBe(0);
});

test('with other losses the gradient is the weighted sum of those of each', async () => {
  const rollout = { ids: written, reward: 0.7 };
  const one = { ...sample!, distilledIds };
  const weights = { ...NONE, ce: 0.9, reinforce: 0.1, distill: 0.5 };
  const together = await pass(weights, one, rollout);
  const apart = [
    await pass({ ...NONE, ce: 0.9 }, one),
    await pass({ ...NONE, reinforce: 0.1 }, one, rollout),
    await pass({ ...NONE, distill: 0.5 }, one),
  ];
  const sum = apart[0]!.gradient.map((value, i) => value + apart[1]!.gradient[i]! + apart[2]!.gradient[i]!);
  expect(relativeError(together.gradient, sum)).toBeLessThan(1e-5);
  expect(together.ce).toBeCloseTo(apart[0]!.ce, 5);
  expect(together.rolloutLogp).toBeCloseTo(apart[1]!.rolloutLogp, 4);
  expect(together.distill).toBeCloseTo(apart[2]!.distill, 5);
});

test('a sample without a continuation is a mistake of the caller, and is named', async () => {
  await expect(pass({ ...NONE, distill: 1 }, sample!)).rejects.toThrow('sample 0 has nothing to be distilled');
});
