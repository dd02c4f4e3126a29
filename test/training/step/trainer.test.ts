/** Losses, gradients and steps of the optimiser are those that PyTorch computes. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AlignmentForm } from '../../../services/lib/model/graph/projector-training.ts';
import { rateAt } from '../../../training/step/optimizer.ts';
import { type LossWeights, ModelPass, TeacherPass } from '../../../training/step/pass.ts';
import { TrainableProjector } from '../../../training/step/projector.ts';
import { type Companions, Trainer } from '../../../training/step/trainer.ts';
import { temporaryFolder } from '../../support/models.ts';
import { openTrainingGoldens, relativeError, summaryError, TOLERANCE } from '../../support/training-goldens.ts';

const folder = await temporaryFolder();
const goldens = await openTrainingGoldens();
afterAll(() => goldens.close());
const { facts, spec, weights: source, samples } = goldens;
const place = { folder, threads: 1, spec, weights: source, layers: 'fp32', maxPositions: 512 } as const;
const NONE: LossWeights = { ce: 0, reinforce: 0, kl: 0, alignment: 0 };

let teacher: TeacherPass;
beforeAll(async () => {
  teacher = await TeacherPass.load(place);
  return () => teacher.dispose();
});
const indexOf = (name: string) => Number(name.replace('sample ', ''));
/** The rollouts and rewards of the reference, and its model as the teacher. */
const companions: Companions = {
  rollOut: async (batch) =>
    batch.map(({ name }) => {
      const { rollout_ids: ids, reward } = facts.samples[indexOf(name)]!;
      return { ids, reward };
    }),
  teach: (sample) => {
    const { teacher_text_ids, prompt_ids } = facts.samples[indexOf(sample.name)]!;
    const promptIds = [...teacher_text_ids, ...prompt_ids];
    return teacher.logp({ ...sample, promptIds, softPositions: [] }, new Float32Array(0));
  },
};

/** A trainer over the initial projector, which `use` may train. */
async function withTrainer(
  layers: 2 | 3,
  weights: LossWeights,
  form: AlignmentForm,
  use: (trainer: Trainer, projector: TrainableProjector) => Promise<void>,
): Promise<void> {
  const { widths, parameters } = await goldens.projector(layers);
  const projector = await TrainableProjector.load({ widths }, parameters, form, place);
  const model = await ModelPass.load(place, weights);
  try {
    await use(new Trainer(projector, model, companions, { weights, clipNorm: 1, weightDecay: 0 }), projector);
  } finally {
    model.dispose();
    projector.dispose();
  }
}

/** The weights and the form of alignment of a composite, as the reference spells them. */
function composite(named: Readonly<Record<string, number>>): { weights: LossWeights; form: AlignmentForm } {
  const { ce = 0, reinforce = 0, kl = 0, align_mse, align_frobenius } = named;
  return {
    weights: { ce, reinforce, kl, alignment: align_mse ?? align_frobenius ?? 0 },
    form: align_frobenius === undefined ? 'mse' : 'frobenius',
  };
}

test('the log-probabilities of the teacher are those of the reference', async () => {
  const logp = await companions.teach!(samples[0]!);
  expect(relativeError(logp, await goldens.tensor('sample0.teacher_logp'))).toBeLessThan(TOLERANCE);
});

describe.each([2, 3] as const)('a projector of %i layers', (layers) => {
  const reference = facts[`projector${layers}`];

  test.each(Object.keys(reference.terms))('the loss %s and its gradients are those of the reference', async (term) => {
    const { weights, form } = composite({ [term]: 1 });
    const { value, gradients: summaries } = reference.terms[term]!;
    await withTrainer(layers, weights, form, async (trainer) => {
      const { gradients, losses } = await trainer.gradients([samples[0]!]);
      const found = term.startsWith('align') ? losses.alignment : losses[term as 'ce' | 'reinforce' | 'kl'];
      expect(Math.abs(found - value) / value).toBeLessThan(TOLERANCE);
      for (const [name, gradient] of gradients) {
        const error =
          layers === 2
            ? relativeError(gradient, await goldens.tensor(`projector2.${term}.gradient.${name}`))
            : summaryError(gradient, summaries![name]!);
        expect(error, name).toBeLessThan(TOLERANCE);
      }
    });
  });

  test.each(Object.entries(reference.composites))(
    'the weighted sum %s over four samples is that of the reference',
    async (named, wanted) => {
      const { weights, form } = composite(wanted.weights);
      await withTrainer(layers, weights, form, async (trainer) => {
        const { gradients } = await trainer.gradients(samples);
        for (const [name, gradient] of gradients) {
          expect(summaryError(gradient, wanted.gradients[name]!), name).toBeLessThan(TOLERANCE);
          if (layers !== 2 || named !== 'llavacode') continue; // of this one the reference has all values
          const whole = await goldens.tensor(`projector2.llavacode.gradient.${name}`);
          expect(relativeError(gradient, whole), name).toBeLessThan(TOLERANCE);
        }
        const { loss, gradientNorm } = await trainer.step(samples, 0);
        expect(Math.abs(loss - wanted.value_mean) / wanted.value_mean).toBeLessThan(TOLERANCE);
        expect(Math.abs(gradientNorm - wanted.gradient_norm) / wanted.gradient_norm).toBeLessThan(TOLERANCE);
      });
    },
  );

  test('five steps of AdamW leave the parameters of the reference', async () => {
    const { weights, form } = composite(reference.composites['llavacode']!.weights);
    await withTrainer(layers, weights, form, async (trainer, projector) => {
      for (const [i, wanted] of reference.adamw.entries()) {
        const rate = 1e-3 * rateAt(i, { form: 'cosine', warmup: 3, total: 100 });
        expect(rate).toBeCloseTo(wanted.lr, 12);
        const { loss, gradientNorm } = await trainer.step(samples, rate);
        expect(Math.abs(loss - wanted.loss) / wanted.loss).toBeLessThan(TOLERANCE);
        expect(Math.abs(gradientNorm - wanted.gradient_norm) / wanted.gradient_norm).toBeLessThan(TOLERANCE);
        for (const [name, values] of projector.parameters) {
          if (layers === 3) expect(summaryError(values, wanted.parameters![name]!), name).toBeLessThan(TOLERANCE);
        }
      }
      expect(reference.adamw.length).toBe(5);
      for (const [name, values] of projector.parameters) {
        if (layers === 3) continue;
        expect(relativeError(values, await goldens.tensor(`projector2.step5.${name}`)), name).toBeLessThan(TOLERANCE);
      }
    });
  });
});

test('five steps of AdamW with cross-entropy and alignment alone leave the parameters of the reference', async () => {
  const { composites, adamw_ce_align: steps } = facts.projector2;
  const { weights, form } = composite(composites['ce_align']!.weights);
  await withTrainer(2, weights, form, async (trainer, projector) => {
    expect(steps).toHaveLength(5);
    for (const { lr, loss: wantedLoss, gradient_norm, parameters } of steps!) {
      const { loss, gradientNorm } = await trainer.step(samples, lr);
      expect(Math.abs(loss - wantedLoss) / wantedLoss).toBeLessThan(TOLERANCE);
      expect(Math.abs(gradientNorm - gradient_norm) / gradient_norm).toBeLessThan(TOLERANCE);
      for (const [name, values] of projector.parameters) {
        expect(summaryError(values, parameters![name]!), name).toBeLessThan(TOLERANCE);
      }
    }
  });
});

test('a sample that cannot be used is refused by name, and leaves the parameters as they were', async () => {
  const model = await ModelPass.load({ ...place, maxPositions: 48 }, { ...NONE, ce: 1 });
  const { widths, parameters } = await goldens.projector(2);
  const projector = await TrainableProjector.load({ widths }, parameters, 'mse', place);
  const settings = { weights: { ...NONE, ce: 1 }, clipNorm: 1, weightDecay: 0 };
  const before = structuredClone(parameters);
  const [sample] = samples;
  const embeddings = sample!.embeddings.slice().fill(Number.NaN, 3, 4);
  const cases: [changes: Partial<typeof sample>, code: string, what: string][] = [
    [{ targetIds: [] }, 'sample_invalid', 'sample 0: its target has no tokens'],
    [{ promptIds: [...sample!.promptIds, 1] }, 'sample_invalid', 'sample 0: it takes 49 rows, and at most 48'],
    [{ softPositions: [0, 1] }, 'sample_invalid', 'sample 0: 10 embeddings for 2 soft tokens'],
    [{ softPositions: [], embeddings: new Float32Array(0) }, 'sample_invalid', 'without a soft token'],
    [{ embeddings }, 'sample_invalid', 'sample 0: an embedding of its chunks is not finite'],
    [{ embeddings: sample!.embeddings.map((x) => x * 1e38) }, 'training_diverged', 'sample 0: the norm'],
  ];
  try {
    const trainer = new Trainer(projector, model, companions, settings);
    for (const [changes, code, what] of cases) {
      const refused = { code, message: expect.stringContaining(what) };
      await expect(trainer.step([{ ...sample!, ...changes }], 1), what).rejects.toMatchObject(refused);
    }
    const huge = { ...sample!, name: 'huge', embeddings: sample!.embeddings.map((x) => x * 1e38) };
    await expect(trainer.step([sample!, huge, sample!], 1)).rejects.toMatchObject({
      code: 'training_diverged',
      message: expect.stringMatching(/^huge: the norm of the gradient/),
    });
    expect(parameters).toEqual(before);
    await trainer.step([sample!], 1e-3); // 48 rows
    parameters.get('linear_2.bias')![0] = Number.NaN;
    const diverged = { code: 'training_diverged', message: expect.stringContaining('sample 0: its loss ce is NaN') };
    await expect(trainer.step([sample!], 1)).rejects.toMatchObject(diverged);
  } finally {
    model.dispose();
    projector.dispose();
  }
});

test('the same seed, data and threads give the same bits', async () => {
  const weights: LossWeights = { ...NONE, ce: 0.9, reinforce: 0.1, alignment: 0.1 };
  const results: string[] = [];
  for (let run = 0; run < 2; run++) {
    await withTrainer(2, weights, 'frobenius', async (trainer, projector) => {
      for (let i = 0; i < 2; i++) await trainer.step(samples, 1e-3);
      results.push(
        [...projector.parameters.values()].map((values) => Buffer.from(values.buffer).toString('base64')).join(),
      );
    });
  }
  expect(results[0]).toBe(results[1]);
});
