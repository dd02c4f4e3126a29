/** Training on a GPU (WebGPU over a software Vulkan device): its gradients are those of the CPU. */
import { join } from 'node:path';
import { beforeAll, expect, test } from 'vitest';
import { type Device, openDevice } from '../../../services/lib/engine/device.ts';
import { openSourceNetwork } from '../../../services/lib/model/checkpoint/source-network.ts';
import { isDecoder } from '../../../services/lib/model/checkpoint/spec.ts';
import { train } from '../../../training/run/train.ts';
import { ModelPass, type ModelPlace } from '../../../training/step/pass.ts';
import { initialParameters, TrainableProjector } from '../../../training/step/projector.ts';
import { Rollouts } from '../../../training/step/rollouts.ts';
import { Trainer } from '../../../training/step/trainer.ts';
import { temporaryFolder } from '../../support/models.ts';
import { never, resultsOf, silent, smallOptions, smallRow, writeRows } from '../../support/training.ts';
import { relativeError } from '../../support/training-goldens.ts';
import { COMPILING_MS, DEVICE_MODEL, useVulkan } from '../../support/vulkan.ts';

const folder = await temporaryFolder();
const network = await openSourceNetwork(DEVICE_MODEL);
let gpu: Device;
beforeAll(async () => {
  await useVulkan();
  gpu = await openDevice({ provider: 'webgpu' });
  return async () => {
    await gpu.dispose();
    await network[Symbol.asyncDispose]();
  };
}, COMPILING_MS);

const WEIGHTS = { ce: 0.9, reinforce: 0.1, kl: 0, alignment: 0.1 };
const DIM = 24;
const samples = [0, 1].map((seed) => ({
  name: `sample ${seed}`,
  promptIds: Array.from({ length: 20 }, (_, i) => (i * 37 + seed) % 200),
  softPositions: [0, 1, 2],
  targetIds: [5, 6, 7 + seed],
  embeddings: Float32Array.from({ length: 3 * DIM }, (_, i) => Math.sin(i + seed)),
}));

async function gradientsOn(device: Device | undefined) {
  const { spec, weights } = network;
  if (!isDecoder(spec)) throw new Error('the model of devices is a decoder');
  const place: ModelPlace = { folder, threads: 2, spec, weights, layers: 'fp32', maxPositions: 64, device };
  const projectorSpec = { widths: [DIM, spec.hidden, spec.hidden] };
  const parameters = initialParameters(projectorSpec, 0.02, 3);
  const projector = await TrainableProjector.load(projectorSpec, parameters, 'frobenius', place);
  const model = await ModelPass.load(place, WEIGHTS);
  const rollouts = await Rollouts.load(place, { slots: 2, tokens: 4, stopIds: new Set() });
  try {
    const rollOut: ConstructorParameters<typeof Trainer>[2]['rollOut'] = async (batch, soft) =>
      (await rollouts.greedy(batch, soft)).map((ids) => ({ ids, reward: 0.5 }));
    const settings = { weights: WEIGHTS, clipNorm: 1, weightDecay: 0 };
    const { gradients } = await new Trainer(projector, model, { rollOut }, settings).gradients(samples);
    return { gradients, leftToCpu: model.leftToCpu };
  } finally {
    model.dispose();
    projector.dispose();
    await rollouts.dispose();
  }
}

/** Operators of whole numbers and shapes, which cost nothing wherever they are computed. */
const BOOKKEEPING = new Set([
  'Add',
  'Concat',
  'Div',
  'Expand',
  'Gather',
  'Less',
  'Mul',
  'Range',
  'Reshape',
  'Shape',
  'Sub',
]);
for (const name of ['Cast', 'Squeeze', 'Unsqueeze', 'ConstantOfShape', 'Slice', 'Where']) BOOKKEEPING.add(name);

test('a GPU computes the gradients of the CPU, and all products itself', { timeout: COMPILING_MS }, async () => {
  const [wanted, found] = [await gradientsOn(undefined), await gradientsOn(gpu)];
  expect(wanted.leftToCpu.size).toBe(0);
  expect(wanted.gradients.size).toBeGreaterThan(4);
  for (const [name, gradient] of wanted.gradients) {
    expect(relativeError(found.gradients.get(name)!, gradient), name).toBeLessThan(1e-3);
  }
  const left = [...found.leftToCpu.keys()].filter((operator) => !BOOKKEEPING.has(operator));
  expect(left).toEqual([]);
  expect(found.leftToCpu.size).toBeGreaterThan(0);
});

test('a run trains on the GPU, says what the CPU computes, and refuses what a GPU cannot do', {
  timeout: COMPILING_MS,
}, async () => {
  const data = await writeRows(join(folder, 'train.jsonl'), [0, 1].map(smallRow));
  const run = { ...smallOptions({ data, validation: data, to: join(folder, 'run') }), steps: 2, threads: 2 };
  const said: string[] = [];
  const progress = silent(undefined, (text) => said.push(text));
  for (const changes of [{ frozen: 'w8a8' }, { frozen: 'fp16' }, { frozen: 'int8' }, { workers: 2 }] as const) {
    await expect(train({ ...run, ...changes, provider: 'webgpu' }, progress, never)).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringContaining(`--provider webgpu (${gpu.name}): --`),
    });
  }
  await train({ ...run, provider: 'webgpu' }, progress, never);
  expect(said).toEqual([
    expect.stringMatching(/^WebGPU on .* leaves \d+ operators to the CPU, all of them arithmetic on shapes$/),
    expect.stringMatching(/^the gradient through fp32 weights on WebGPU .* has a cosine of (1\.0000|0\.9999) to that/),
  ]);
  const onCpu = { ...run, to: join(folder, 'on-cpu') };
  await train(onCpu, silent(), never);
  const lossesOf = async (one: typeof run) => (await resultsOf(one)).log.map((line) => JSON.parse(line).loss as number);
  for (const [i, loss] of (await lossesOf(onCpu)).entries()) {
    if (loss !== undefined) expect((await lossesOf(run))[i]).toBeCloseTo(loss, 2);
  }
  await expect(train(run, silent(), never)).rejects.toMatchObject({ code: 'config_invalid' }); // of another device
});
