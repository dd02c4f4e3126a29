/** Greedy rollouts after soft tokens are those of the reference, however many decode together. */
import { afterAll, describe, expect, test } from 'vitest';
import { TrainableProjector } from '../../../training/step/projector.ts';
import { Rollouts } from '../../../training/step/rollouts.ts';
import { temporaryFolder } from '../../support/models.ts';
import { openTrainingGoldens } from '../../support/training-goldens.ts';

const folder = await temporaryFolder();
const goldens = await openTrainingGoldens();
afterAll(() => goldens.close());
const { facts, spec, weights, samples } = goldens;
const place = { folder, threads: 1, spec, weights, layers: 'fp32', maxPositions: 128 } as const;

describe.each([2, 3] as const)('with a projector of %i layers', (layers) => {
  const wanted = facts.samples.map(({ greedy }) => greedy[layers]!.ids);

  test.each([1, 3, 4])('%i sequences that decode together are those of the reference', async (slots) => {
    const { widths, parameters } = await goldens.projector(layers);
    const projector = await TrainableProjector.load({ widths }, parameters, 'mse', place);
    const stopIds = new Set([wanted[1]![5]!]);
    const [whole, stopping] = [
      await Rollouts.load(place, { slots, tokens: 12, stopIds: new Set() }),
      await Rollouts.load(place, { slots, tokens: 12, stopIds }),
    ];
    try {
      const soft: Float32Array[] = [];
      for (const { embeddings } of samples) soft.push(await projector.project(embeddings));
      expect(await whole.greedy(samples, soft)).toEqual(wanted);
      // A rollout ends with its stop token; the others go on.
      const ended = wanted.map((ids) => {
        const at = ids.findIndex((id) => stopIds.has(id));
        return at < 0 ? ids : ids.slice(0, at + 1);
      });
      expect(ended).not.toEqual(wanted);
      expect(await stopping.greedy(samples, soft)).toEqual(ended);
    } finally {
      await whole.dispose();
      await stopping.dispose();
      projector.dispose();
    }
  });
});
