/** What a new projector begins with: soft tokens as long as the language model's own embeddings. */
import { afterAll, expect, test } from 'vitest';
import { gaussians } from '../../../training/step/gaussians.ts';
import { initialParameters, TrainableProjector, tableScale } from '../../../training/step/projector.ts';
import { temporaryFolder } from '../../support/models.ts';
import { openTrainingGoldens } from '../../support/training-goldens.ts';

const folder = await temporaryFolder();
const goldens = await openTrainingGoldens();
afterAll(() => goldens.close());
const scale = (values: Float32Array) => Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0) / values.length);

test('the scale of a model is the root mean square of its table of embeddings', async () => {
  const found = await tableScale(goldens.spec, goldens.weights);
  expect(found).toBeCloseTo(scale(await goldens.weights.read('model.embed_tokens.weight')), 6);
});

test.each([
  [2, 0.136],
  [3, 0.015],
  [4, 1.7],
])(
  'a projector of %i layers gives soft tokens of the scale %f, whatever the embeddings are',
  async (layers, wanted) => {
    const widths = [32, ...new Array<number>(layers).fill(128)];
    const parameters = initialParameters({ widths }, wanted, 5);
    const projector = await TrainableProjector.load({ widths }, parameters, 'frobenius', { folder, threads: 1 });
    try {
      for (const length of [0.1, 1, 10]) {
        const soft = await projector.project(gaussians(9, 0, 64 * 32, length));
        expect(scale(soft) / wanted).toBeGreaterThan(0.8);
        expect(scale(soft) / wanted).toBeLessThan(1.25);
      }
    } finally {
      projector.dispose();
    }
  },
);
