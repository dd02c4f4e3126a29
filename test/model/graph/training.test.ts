/**
 * The gradient of every loss at the soft tokens: PyTorch's for Qwen2, that of finite differences for Llama and Qwen3,
 * and the same one whichever way it is computed. What becomes of it in the projector, against PyTorch:
 * test/training/step/trainer.test.ts.
 */
import { afterAll, describe, expect, test } from 'vitest';
import type { OrtSession, Tensor } from '../../../services/lib/engine/ort.ts';
import { PROMPT_FORMATS } from '../../../services/lib/model/bundle/weight-formats.ts';
import type { TensorSource } from '../../../services/lib/model/checkpoint/checkpoint.ts';
import type { DecoderSpec } from '../../../services/lib/model/checkpoint/spec.ts';
import type { Value } from '../../../services/lib/model/graph/graph.ts';
import { projectorShapes } from '../../../services/lib/model/graph/projector.ts';
import {
  buildProjectorTraining,
  buildTrainableProjector,
} from '../../../services/lib/model/graph/projector-training.ts';
import { buildTraining } from '../../../services/lib/model/graph/training.ts';
import { wordsAt } from '../../../services/lib/numeric/random.ts';
import { attentionBias, layOut, type Sample } from '../../../training/step/rows.ts';
import { float32, int64 } from '../../../training/step/tensors.ts';
import { loadGraph, temporaryFolder } from '../../support/models.ts';
import { openTrainingGoldens, relativeError, TOLERANCE } from '../../support/training-goldens.ts';

const parent = await temporaryFolder();
const goldens = await openTrainingGoldens();
afterAll(() => goldens.close());
let folders = 0;
type Format = Parameters<typeof buildTraining>[2];
const FLOATS = { layers: 'fp32', maxPositions: 512, backward: true } as const;

async function withGraph<T>(
  [spec, source]: readonly [DecoderSpec, TensorSource],
  format: Format,
  use: (session: OrtSession) => Promise<T>,
): Promise<T> {
  const session = await loadGraph(buildTraining(spec, source, format), parent, `graph-${folders++}`);
  try {
    return await use(session);
  } finally {
    session.dispose();
  }
}

/** Numbers in [-1, 1) that depend on the seed alone. */
const numbers = (seed: number, length: number) =>
  Float32Array.from({ length }, (_, i) => wordsAt(seed, i)[0] / 2 ** 31 - 1);

/** The inputs of a pass over the target, each of whose tokens has the given weight, and over a rollout with another. */
function feeds(sample: Sample, soft: Float32Array, weight: number, rollout: readonly number[] = [], ofRollout = 0) {
  const { ids, scored, targets, positions } = layOut(sample, rollout);
  const k = sample.softPositions.length;
  const weights = Float32Array.from(targets, (_, i) => (i < sample.targetIds.length ? weight : ofRollout));
  const inputs: Record<string, Tensor> = {
    input_ids: int64([1, ids.length], ids),
    soft_tokens: float32([k, soft.length / k], soft),
    soft_positions: int64([k], sample.softPositions),
    rows: int64([scored.length], scored),
    targets: int64([targets.length], targets),
    weights: float32([weights.length], weights),
  };
  const bias = float32([1, 1, ids.length, ids.length], attentionBias(sample, rollout));
  return { inputs, joint: { ...inputs, position_ids: int64([1, ids.length], positions), attention_bias: bias } };
}
const gradientOf = (out: Record<string, Tensor>) => out['soft_gradient']!.data as Float32Array;
const logpOf = (out: Record<string, Tensor>) => out['token_logp']!.data as Float32Array;

describe.each([2, 3] as const)('with the soft tokens of a projector of %i layers', (layers) => {
  const [sample] = goldens.samples;
  const [{ rollout_ids: rollout, reward }] = goldens.facts.samples as [(typeof goldens.facts.samples)[0]];
  const rows = sample!.softPositions.length;
  const { hidden, vocab } = goldens.spec;
  const projectorInputs = async () => {
    const { widths, parameters } = await goldens.projector(layers);
    const shapes = projectorShapes({ widths });
    const inputs = Object.fromEntries([...parameters].map(([name, data]) => [name, float32(shapes.get(name)!, data)]));
    return { widths, inputs: { ...inputs, embeddings: float32([rows, widths[0]!], sample!.embeddings) } };
  };
  const wanted = (term: string) => goldens.tensor(`projector${layers}.${term}.soft_gradient`);

  test.each(['ce', 'reinforce', 'kl'])('the gradient of %s at them is that of PyTorch', async (term) => {
    const { widths, inputs } = await projectorInputs();
    const projector = await loadGraph(buildTrainableProjector({ widths }), parent, `graph-${folders++}`);
    const soft = (await projector.run(inputs))['soft_tokens']!.data as Float32Array;
    projector.dispose();
    const target = sample!.targetIds.length;
    const scored = target + rollout.length;
    const each = 1 / target;
    const { joint } = feeds(sample!, soft, term === 'ce' ? each : 0, rollout, term === 'reinforce' ? reward : 0);
    const teacher = new Float32Array(scored * vocab);
    teacher.set(await goldens.tensor('sample0.teacher_logp'));
    const given = {
      ...joint,
      teacher_logp: float32([scored, vocab], teacher),
      kl_weights: float32([scored], new Float32Array(scored).fill(term === 'kl' ? each : 0, 0, target)),
    };
    const format = { ...FLOATS, joint: true, kl: true };
    const out = await withGraph([goldens.spec, goldens.weights], format, (session) => session.run(given));
    expect(relativeError(gradientOf(out), await wanted(term))).toBeLessThan(TOLERANCE);
  });

  test.each(['mse', 'frobenius'] as const)(
    'the gradient of the alignment %s at them is that of PyTorch',
    async (form) => {
      const { widths, inputs } = await projectorInputs();
      const graph = buildProjectorTraining({ widths }, rows, form);
      // What goes backward through the projector: the gradient of the language model's losses, here 0, and this one.
      const [backward] = graph.nodes.find(({ inputs }) => inputs.includes('soft_gradient'))!.outputs;
      graph.output(backward as Value, 'float32', ['n', hidden]);
      const session = await loadGraph(graph, parent, `graph-${folders++}`);
      const out = await session.run({
        ...inputs,
        soft_gradient: float32([rows, hidden], new Float32Array(rows * hidden)),
        alignment_weight: float32([], Float32Array.of(1)),
      });
      session.dispose();
      const found = out[backward!]!.data as Float32Array;
      expect(relativeError(found, await wanted(`align_${form}`))).toBeLessThan(TOLERANCE);
    },
  );
});

describe('the gradient of cross-entropy at the soft tokens', () => {
  const [sample] = goldens.samples;
  const network = [goldens.spec, goldens.weights] as const;
  const soft = numbers(5, 10 * goldens.spec.hidden);
  const { inputs } = feeds(sample!, soft, 1 / 7);
  const plain = () => withGraph(network, FLOATS, (session) => session.run(inputs));

  test('activations that are computed again give the same gradient', async () => {
    const again = await withGraph(network, { ...FLOATS, recompute: true }, (session) => session.run(inputs));
    expect(relativeError(gradientOf(again), gradientOf(await plain()))).toBeLessThan(1e-6);
  });

  test('plain operators, as GPUs have them, give the same gradient and log-probabilities', async () => {
    const used = (plain: boolean) => {
      const { nodes } = buildTraining(...network, { ...FLOATS, plain });
      return [...new Set(nodes.map(({ operator }) => operator))].filter((type) =>
        /^(LogSoftmax|FusedMatMul)$/.test(type),
      );
    };
    expect(used(false).sort()).toEqual(['FusedMatMul', 'LogSoftmax']);
    expect(used(true)).toEqual([]); // WebGPU leaves both to the CPU
    for (const recompute of [false, true]) {
      const found = await withGraph(network, { ...FLOATS, recompute, plain: true }, (session) => session.run(inputs));
      const wanted = await plain();
      expect(relativeError(gradientOf(found), gradientOf(wanted))).toBeLessThan(1e-5);
      expect(relativeError(logpOf(found), logpOf(wanted))).toBeLessThan(1e-5);
    }
  });

  test('a sample and a rollout in one pass have the sum of the gradients of two passes', async () => {
    const rollout = goldens.facts.samples[0]!.rollout_ids;
    const { joint } = feeds(sample!, soft, 0.9 / 7, rollout, 0.2);
    const both = await withGraph(network, { ...FLOATS, joint: true }, (session) => session.run(joint));
    const [ofTarget, ofRollout] = await withGraph(network, FLOATS, async (session) => [
      await session.run(feeds(sample!, soft, 0.9 / 7).inputs),
      await session.run(feeds({ ...sample!, targetIds: rollout }, soft, 0.2).inputs),
    ]);
    const sum = gradientOf(ofTarget!).map((value, i) => value + gradientOf(ofRollout!)[i]!);
    expect(relativeError(gradientOf(both), sum)).toBeLessThan(1e-5);
    expect(relativeError(logpOf(both), [...logpOf(ofTarget!), ...logpOf(ofRollout!)])).toBeLessThan(1e-5);
  });

  test.each<[string, Partial<Format>, number]>([
    ['in 8 bits with 8-bit activations, forward', { layers: PROMPT_FORMATS }, 0.99],
    ['in 8 bits with 8-bit activations, both ways', { layers: PROMPT_FORMATS, backwardLayers: 'w8a8 by row' }, 0.99],
    ['in 8 bits, widened', { layers: 'int8' }, 0.99],
    ['in 8-bit blocks', { layers: { bits: 8, block: 32 } }, 0.99],
    ['in 4-bit blocks', { layers: { bits: 4, block: 32 } }, 0.9],
  ])('with frozen weights %s it points the same way', async (_, format, cosine) => {
    const found = gradientOf(await withGraph(network, { ...FLOATS, ...format }, (session) => session.run(inputs)));
    const wanted = gradientOf(await plain());
    const dot = found.reduce((sum, value, i) => sum + value * wanted[i]!, 0);
    expect(dot / Math.hypot(...found) / Math.hypot(...wanted)).toBeGreaterThan(cosine);
    expect(relativeError(found, wanted)).toBeGreaterThan(TOLERANCE); // they are quantised
  });

  test('with frozen weights in 16-bit floats it is the same where these lose nothing', async () => {
    for (const recompute of [false, true]) {
      const format = { ...FLOATS, layers: 'fp16', recompute } as const;
      const found = gradientOf(await withGraph(network, format, (session) => session.run(inputs)));
      expect(relativeError(found, gradientOf(await plain()))).toBeLessThan(1e-6); // the reference's weights fit 16 bits
    }
  });
});

/** A network of random weights: norms near 1, all else small. */
function randomNetwork(architecture: DecoderSpec['architecture'], tied: boolean, kvHeads: number) {
  const spec: DecoderSpec = {
    architecture,
    hidden: 32,
    layers: 3,
    heads: 6,
    kvHeads,
    headDim: 8,
    intermediate: 40,
    vocab: 50,
    maxPositions: 64,
    normEps: 1e-5,
    ropeTheta: 10_000,
    qkvBias: architecture === 'qwen2',
    qkNorm: architecture === 'qwen3',
    tied,
    eosIds: [0],
  };
  const { hidden, heads, headDim, intermediate, vocab } = spec;
  const shapes: Record<string, number[]> = {
    'model.embed_tokens.weight': [vocab, hidden],
    'model.norm.weight': [hidden],
    ...(tied ? {} : { 'lm_head.weight': [vocab, hidden] }),
  };
  for (let i = 0; i < spec.layers; i++) {
    const layer = {
      'input_layernorm.weight': [hidden],
      'post_attention_layernorm.weight': [hidden],
      'self_attn.q_proj.weight': [heads * headDim, hidden],
      'self_attn.q_proj.bias': [heads * headDim],
      'self_attn.k_proj.weight': [kvHeads * headDim, hidden],
      'self_attn.k_proj.bias': [kvHeads * headDim],
      'self_attn.v_proj.weight': [kvHeads * headDim, hidden],
      'self_attn.v_proj.bias': [kvHeads * headDim],
      'self_attn.q_norm.weight': [headDim],
      'self_attn.k_norm.weight': [headDim],
      'self_attn.o_proj.weight': [hidden, heads * headDim],
      'mlp.gate_proj.weight': [intermediate, hidden],
      'mlp.up_proj.weight': [intermediate, hidden],
      'mlp.down_proj.weight': [hidden, intermediate],
    };
    for (const [name, shape] of Object.entries(layer)) shapes[`model.layers.${i}.${name}`] = shape;
  }
  const names = Object.keys(shapes);
  const source: TensorSource = {
    origin: `random ${architecture}`,
    shapeOf: (name) => shapes[name],
    read: async (name) => {
      const values = numbers(
        100 + names.indexOf(name),
        shapes[name]!.reduce((product, dim) => product * dim, 1),
      );
      if (name.includes('norm')) return values.map((value) => 1 + 0.2 * value);
      return values.map((value) => (value * 1.7) / Math.sqrt(shapes[name]!.at(-1)!));
    },
  };
  return [spec, source] as const;
}

describe.each([
  ['qwen2', true, 3],
  ['qwen2', false, 1],
  ['qwen3', true, 2],
  ['qwen3', false, 6],
  ['llama', false, 2],
] as const)('a random %s (tied %s, %i heads of keys)', (architecture, tied, kvHeads) => {
  const network = randomNetwork(architecture, tied, kvHeads);
  const [{ hidden, vocab }] = network;
  const sample: Sample = {
    name: 'sample',
    promptIds: [7, 0, 0, 0, 11, 12, 13, 2, 9],
    softPositions: [1, 2, 3],
    targetIds: [3, 4, 5],
  };
  const rollout = [8, 3, 17, 20];
  const soft = numbers(77, 3 * hidden);
  const teacher = Float32Array.from({ length: 7 * vocab }, () => -Math.log(vocab));

  test.each([
    [false, 'fp32'],
    [true, 'fp32'],
    [false, 'fp16'],
    [true, 'int8'],
  ] as const)(
    'the gradient of all losses is that of finite differences (recompute %s, weights in %s)',
    async (recompute, layers) => {
      const format = { ...FLOATS, layers, joint: true, kl: true, recompute };
      await withGraph(network, format, async (session) => {
        const run = (at: Float32Array) =>
          session.run({
            ...feeds(sample, at, 0.7, rollout, -0.4).joint,
            teacher_logp: float32([7, vocab], teacher),
            kl_weights: float32([7], Float32Array.of(0.5, 0.5, 0.5, 0, 0, 0, 0)),
          });
        const loss = (out: Record<string, Tensor>) => {
          const kl = out['kl']!.data as Float32Array;
          const ofTokens = logpOf(out).reduce((sum, logp, i) => sum - (i < 3 ? 0.7 : -0.4) * logp, 0);
          return ofTokens + 0.5 * (kl[0]! + kl[1]! + kl[2]!);
        };
        const gradient = gradientOf(await run(soft));
        const size = Math.hypot(...gradient);
        const step = 2 ** -9;
        for (let draw = 0; draw < 4; draw++) {
          const along = numbers(200 + draw, soft.length);
          const moved = (distance: number) => run(soft.map((value, i) => value + distance * along[i]!));
          const measured = (loss(await moved(step)) - loss(await moved(-step))) / (2 * step);
          const computed = gradient.reduce((sum, value, i) => sum + value * along[i]!, 0);
          expect(Math.abs(measured - computed)).toBeLessThan(0.01 * size);
        }
      });
    },
  );
});
