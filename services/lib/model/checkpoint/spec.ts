/**
 * The architecture of a network, read from a Hugging Face `config.json`: the decoders Qwen2, Llama and Qwen3, and the
 * encoders RoBERTa (UniXcoder), BERT (MiniLM, BGE, E5) and JinaBERT (Jina embeddings v2). A setting that would change
 * the arithmetic and is not implemented is refused, never ignored.
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

export interface BertSpec {
  readonly architecture: 'roberta' | 'bert';
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly intermediate: number;
  readonly vocab: number;
  /** Rows of the position table, and the first one that belongs to a token: RoBERTa's follow that of its padding id. */
  readonly positionRows: number;
  readonly firstPosition: number;
  readonly tokenTypes: number;
  readonly normEps: number;
  /** How the folder says that hidden states become one vector: the first token's state, or the mean of all. */
  readonly pooling: 'cls' | 'mean';
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

export type NetworkSpec = DecoderSpec | BertSpec | JinaSpec;

/** Whether a network is a language model. The others only encode. */
export const isDecoder = (spec: NetworkSpec): spec is DecoderSpec =>
  spec.architecture !== 'roberta' && spec.architecture !== 'bert' && spec.architecture !== 'jina';

/** The longest input that the encoder's positions allow, in tokens. */
export const maxInputTokens = (spec: NetworkSpec): number =>
  'positionRows' in spec ? spec.positionRows - spec.firstPosition : spec.maxPositions;

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

const bertConfig = robertaConfig.extend({
  model_type: z.literal('bert'),
  feed_forward_type: z.literal('original', 'is not supported (original is)').nullish(),
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
  position_embedding_type: z.literal('alibi'),
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

function toBertSpec(file: string, config: z.output<typeof robertaConfig> | z.output<typeof bertConfig>): BertSpec {
  assertHeads(file, config);
  return {
    architecture: config.model_type,
    hidden: config.hidden_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    intermediate: config.intermediate_size,
    vocab: config.vocab_size,
    positionRows: config.max_position_embeddings,
    tokenTypes: config.type_vocab_size,
    normEps: config.layer_norm_eps,
    firstPosition: config.model_type === 'roberta' ? config.pad_token_id + 1 : 0,
    pooling: 'mean',
  };
}

const anyConfig = z.discriminatedUnion('model_type', [decoderConfig, robertaConfig, bertConfig]);

/** JinaBERT has BERT's name, and is told by its positions. */
const isJina = (config: unknown) =>
  (config as { position_embedding_type?: unknown } | null)?.position_embedding_type === 'alibi';

/**
 * The network that a parsed `config.json` describes.
 * @param file name for messages.
 * @throws ServingError checkpoint_invalid, which names every field that is missing, wrong or not implemented.
 */
export function parseSpec(file: string, config: unknown): NetworkSpec {
  const parsed = (isJina(config) ? jinaConfig : anyConfig).safeParse(config);
  if (!parsed.success) {
    const type = (config as { model_type?: unknown } | null)?.model_type;
    const known = ['qwen2', 'llama', 'qwen3', 'roberta', 'bert'];
    if (typeof type !== 'string' || !known.includes(type)) {
      throw invalid(file, `model_type ${JSON.stringify(type)} is not supported (${known.join(', ')} are)`);
    }
    const problems = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
    throw invalid(file, problems.join('; '));
  }
  const { data } = parsed;
  if (data.model_type === 'bert' && data.position_embedding_type === 'alibi') return toJinaSpec(file, data);
  return data.model_type === 'roberta' || data.model_type === 'bert'
    ? toBertSpec(file, data)
    : toDecoderSpec(file, data);
}

/**
 * Reads the `config.json` of a Hugging Face folder, and what other files add to it: `generation_config.json` ids that
 * end a text, and `1_Pooling/config.json`, which sentence-transformers writes, how BERT's states are pooled.
 * @throws ServingError checkpoint_invalid
 */
export async function readSpec(dir: string): Promise<NetworkSpec> {
  const file = join(dir, 'config.json');
  const spec = parseSpec(file, await readJson(file));
  if (spec.architecture === 'bert') return { ...spec, pooling: await readPooling(dir) };
  if (!isDecoder(spec)) return spec;
  const generation = join(dir, 'generation_config.json');
  const text = await readFile(generation, 'utf8').catch(() => undefined);
  if (text === undefined) return spec;
  const extra = z.object({ eos_token_id: decoderConfig.shape.eos_token_id }).safeParse(await readJson(generation));
  if (!extra.success) throw invalid(generation, `eos_token_id: ${extra.error.issues[0]?.message}`);
  return { ...spec, eosIds: [...new Set([...spec.eosIds, ...[extra.data.eos_token_id ?? []].flat()])] };
}

const poolingConfig = z.looseObject({
  pooling_mode_cls_token: z.boolean().default(false),
  pooling_mode_mean_tokens: z.boolean().default(false),
});

async function readPooling(dir: string): Promise<BertSpec['pooling']> {
  const file = join(dir, '1_Pooling/config.json');
  if ((await readFile(file).catch(() => undefined)) === undefined) return 'mean';
  const parsed = poolingConfig.safeParse(await readJson(file));
  const [cls, mean] = [parsed.data?.pooling_mode_cls_token, parsed.data?.pooling_mode_mean_tokens];
  if (cls !== mean) return cls === true ? 'cls' : 'mean';
  throw invalid(
    file,
    'does not name one of pooling_mode_cls_token and pooling_mode_mean_tokens: others are not supported',
  );
}

/** @throws ServingError checkpoint_invalid if the file cannot be read as JSON. */
export async function readJson(file: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(file, 'utf8'));
  } catch (error) {
    throw new ServingError('checkpoint_invalid', `${file}: ${reasonOf(error)}`, { cause: error });
  }
}
