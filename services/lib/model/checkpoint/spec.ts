/**
 * The architecture of a network, read from a Hugging Face `config.json`: the decoders Qwen2, Llama and Qwen3, and the
 * encoders RoBERTa (UniXcoder) and JinaBERT (Jina embeddings v2). A setting that would change the arithmetic and is not
 * implemented is refused, never ignored.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { ServingError } from '../../process/errors.ts';
import { reasonOf } from '../../process/os-errors.ts';

const count = z.number().int().positive();

export const decoderSpecSchema = z.object({
  architecture: z.enum(['qwen2', 'llama', 'qwen3']),
  hidden: count,
  layers: count,
  heads: count,
  kvHeads: count,
  headDim: count,
  intermediate: count,
  vocab: count,
  /** Longest sequence that the model was trained for. */
  maxPositions: count,
  normEps: z.number().positive(),
  ropeTheta: z.number().positive(),
  /** Whether query, key and value projections have a bias (Qwen2). */
  qkvBias: z.boolean(),
  /** Whether queries and keys are normalised per head before the rotation (Qwen3). */
  qkNorm: z.boolean(),
  /** Whether the embedding table is also the output projection. */
  tied: z.boolean(),
  /** Ids that end a completion. */
  eosIds: z.array(z.number().int().nonnegative()),
});
export type DecoderSpec = z.output<typeof decoderSpecSchema>;

export interface RobertaSpec {
  readonly architecture: 'roberta';
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly intermediate: number;
  readonly vocab: number;
  /** Rows of the position table. The row of the padding id and those before it are never positions of a token. */
  readonly positionRows: number;
  readonly tokenTypes: number;
  readonly normEps: number;
  readonly padId: number;
}

/** BERT with linear attention biases instead of positions, and a gated MLP. */
export interface JinaSpec {
  readonly architecture: 'jina';
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly intermediate: number;
  readonly vocab: number;
  /** Longest input that the model was trained for. */
  readonly maxPositions: number;
  readonly tokenTypes: number;
  readonly normEps: number;
}

export type NetworkSpec = DecoderSpec | RobertaSpec | JinaSpec;

/** Whether a network is a language model. The others only encode. */
export const isDecoder = (spec: NetworkSpec): spec is DecoderSpec =>
  spec.architecture !== 'roberta' && spec.architecture !== 'jina';

/** The longest input that the encoder's positions allow, in tokens. */
export const maxInputTokens = (spec: NetworkSpec): number =>
  spec.architecture === 'roberta' ? spec.positionRows - spec.padId - 1 : spec.maxPositions;

const rope = z.looseObject({
  rope_theta: z.number().positive().optional(),
  rope_type: z.string().optional(),
  type: z.string().optional(),
});

const decoderConfig = z.object({
  model_type: z.enum(['qwen2', 'llama', 'qwen3']),
  hidden_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  num_key_value_heads: count.nullish(),
  head_dim: count.nullish(),
  intermediate_size: count,
  vocab_size: count,
  max_position_embeddings: count,
  rms_norm_eps: z.number().positive(),
  rope_theta: z.number().positive().nullish(),
  rope_parameters: rope.nullish(),
  rope_scaling: rope.nullish(),
  partial_rotary_factor: z.literal(1, 'partial rotation is not supported').nullish(),
  hidden_act: z.literal('silu', 'is not supported (silu is)'),
  attention_bias: z.literal(false, 'is not supported by this exporter for this architecture').nullish(),
  mlp_bias: z.literal(false, 'is not supported').nullish(),
  use_sliding_window: z.literal(false, 'sliding-window attention is not supported').nullish(),
  layer_types: z.array(z.literal('full_attention', 'only full_attention layers are supported')).nullish(),
  tie_word_embeddings: z.boolean().default(false),
  eos_token_id: z.union([z.number().int(), z.array(z.number().int())]).nullish(),
});

const robertaConfig = z.object({
  model_type: z.literal('roberta'),
  hidden_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  intermediate_size: count,
  vocab_size: count,
  max_position_embeddings: count,
  type_vocab_size: count,
  layer_norm_eps: z.number().positive(),
  pad_token_id: z.number().int().nonnegative(),
  hidden_act: z.literal('gelu', 'is not supported (gelu is)'),
  position_embedding_type: z.literal('absolute', 'only absolute positions are supported').nullish(),
  is_decoder: z.literal(false, 'is a decoder: only the encoder form is supported').nullish(),
});

const invalid = (file: string, what: string) => new ServingError('checkpoint_invalid', `${file}: ${what}`);

const jinaConfig = z.object({
  model_type: z.literal('bert'),
  hidden_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  intermediate_size: count,
  vocab_size: count,
  max_position_embeddings: count,
  type_vocab_size: count,
  layer_norm_eps: z.number().positive(),
  hidden_act: z.literal('gelu', 'is not supported (gelu is)'),
  position_embedding_type: z.literal('alibi', "is not supported: of BERT's kin only JinaBERT (alibi) is"),
  feed_forward_type: z.literal('geglu', 'is not supported (geglu is)'),
  is_decoder: z.literal(false, 'is a decoder: only the encoder form is supported').nullish(),
});

function toDecoderSpec(file: string, config: z.output<typeof decoderConfig>): DecoderSpec {
  for (const key of ['rope_scaling', 'rope_parameters'] as const) {
    const type = config[key]?.rope_type ?? config[key]?.type ?? 'default';
    if (type !== 'default') throw invalid(file, `${key}: rope type "${type}" is not supported (default is)`);
  }
  const heads = config.num_attention_heads;
  const kvHeads = config.num_key_value_heads ?? heads;
  const headDim = config.head_dim ?? config.hidden_size / heads;
  if (heads % kvHeads !== 0) throw invalid(file, `${heads} heads cannot share ${kvHeads} key/value heads evenly`);
  if (!Number.isInteger(headDim) || headDim % 8 !== 0) {
    throw invalid(file, `head_dim ${headDim} is not a multiple of 8, which attention needs`);
  }
  const eos = config.eos_token_id ?? [];
  return {
    architecture: config.model_type,
    hidden: config.hidden_size,
    layers: config.num_hidden_layers,
    heads,
    kvHeads,
    headDim,
    intermediate: config.intermediate_size,
    vocab: config.vocab_size,
    maxPositions: config.max_position_embeddings,
    normEps: config.rms_norm_eps,
    ropeTheta: config.rope_parameters?.rope_theta ?? config.rope_theta ?? 10_000,
    qkvBias: config.model_type === 'qwen2',
    qkNorm: config.model_type === 'qwen3',
    tied: config.tie_word_embeddings,
    eosIds: typeof eos === 'number' ? [eos] : eos,
  };
}

function assertHeads(file: string, config: { hidden_size: number; num_attention_heads: number }): void {
  if (config.hidden_size % config.num_attention_heads !== 0) {
    throw invalid(file, `hidden_size ${config.hidden_size} is not a multiple of ${config.num_attention_heads} heads`);
  }
}

function toJinaSpec(file: string, config: z.output<typeof jinaConfig>): JinaSpec {
  assertHeads(file, config);
  return {
    architecture: 'jina',
    hidden: config.hidden_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    intermediate: config.intermediate_size,
    vocab: config.vocab_size,
    maxPositions: config.max_position_embeddings,
    tokenTypes: config.type_vocab_size,
    normEps: config.layer_norm_eps,
  };
}

function toRobertaSpec(file: string, config: z.output<typeof robertaConfig>): RobertaSpec {
  assertHeads(file, config);
  return {
    architecture: 'roberta',
    hidden: config.hidden_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    intermediate: config.intermediate_size,
    vocab: config.vocab_size,
    positionRows: config.max_position_embeddings,
    tokenTypes: config.type_vocab_size,
    normEps: config.layer_norm_eps,
    padId: config.pad_token_id,
  };
}

const anyConfig = z.discriminatedUnion('model_type', [decoderConfig, robertaConfig, jinaConfig]);

/**
 * The network that a parsed `config.json` describes.
 * @param file name for messages.
 * @throws ServingError checkpoint_invalid, which names every field that is missing, wrong or not implemented.
 */
export function parseSpec(file: string, config: unknown): NetworkSpec {
  const parsed = anyConfig.safeParse(config);
  if (!parsed.success) {
    const type = (config as { model_type?: unknown } | null)?.model_type;
    const known = ['qwen2', 'llama', 'qwen3', 'roberta', 'bert'];
    if (typeof type !== 'string' || !known.includes(type)) {
      throw invalid(file, `model_type ${JSON.stringify(type)} is not supported (${known.join(', ')} are)`);
    }
    const problems = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
    throw invalid(file, problems.join('; '));
  }
  switch (parsed.data.model_type) {
    case 'roberta':
      return toRobertaSpec(file, parsed.data);
    case 'bert':
      return toJinaSpec(file, parsed.data);
    default:
      return toDecoderSpec(file, parsed.data);
  }
}

/**
 * Reads the `config.json` of a Hugging Face folder, and the end-of-text ids that `generation_config.json` adds to it.
 * @throws ServingError checkpoint_invalid
 */
export async function readSpec(dir: string): Promise<NetworkSpec> {
  const file = join(dir, 'config.json');
  const spec = parseSpec(file, await readJson(file));
  if (!isDecoder(spec)) return spec;
  const generation = join(dir, 'generation_config.json');
  const text = await readFile(generation, 'utf8').catch(() => undefined);
  if (text === undefined) return spec;
  const extra = z.object({ eos_token_id: decoderConfig.shape.eos_token_id }).safeParse(await readJson(generation));
  if (!extra.success) throw invalid(generation, `eos_token_id: ${extra.error.issues[0]?.message}`);
  return { ...spec, eosIds: [...new Set([...spec.eosIds, ...[extra.data.eos_token_id ?? []].flat()])] };
}

/** @throws ServingError checkpoint_invalid if the file cannot be read as JSON. */
export async function readJson(file: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(file, 'utf8'));
  } catch (error) {
    throw new ServingError('checkpoint_invalid', `${file}: ${reasonOf(error)}`, { cause: error });
  }
}
