/**
 * How an encoder reads a chunk and pools it, and how many soft tokens that gives. The command line decides; otherwise
 * the `encoder` object in the projector's `config.json` (a projector is trained for one form); otherwise the paper's
 * code for this architecture, and for BERT the pooling that its folder names.
 *
 * For a language model as an encoder (Qwen3-Embedding) there are two recipes. The published one ends a chunk with the
 * end-of-text token and pools there, and a query, but not a chunk, begins with an instruction. The paper's authors pool
 * the last token of the code itself and give no instruction, so their projectors expect other vectors than those of an
 * embedding server.
 */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { ServingError } from '../../process/errors.ts';
import { isDecoder, maxInputTokens, type NetworkSpec } from '../checkpoint/spec.ts';
import type { Pooling } from '../graph/encoder.ts';
import type { EncoderManifest } from './bundle.ts';
import { ENCODER_MODALITIES, ENCODER_RECIPES, POOLINGS, SOFT_PER_CHUNK, type SoftPerChunk } from './choices.ts';

type EncoderSettings = Pick<
  EncoderManifest,
  'maxTokens' | 'pooling' | 'normalize' | 'input' | 'addSpecialTokens' | 'recipe' | 'modality' | 'queryPrefix'
> & {
  /** Soft tokens of one chunk, where they are more than one. */
  readonly softPerChunk?: SoftPerChunk;
};

/** Tokens of a chunk that the paper's encoders read. */
const DEFAULT_MAX_TOKENS = 512;

/** The instruction, in the form that Qwen3-Embedding's model card gives. */
const QUERY_INSTRUCTION =
  'Instruct: Given a fragment of code, retrieve code of the same repository that helps to continue it\nQuery:';

const configSchema = z.object({
  encoder: z
    .object({
      // What the projector was trained with; `llavacode train` writes them.
      architecture: z.string().optional(),
      layers: z.number().int().positive().optional(),
      // Early projectors describe their pooling in words, which is not a setting.
      pooling: z.enum(POOLINGS).optional().catch(undefined),
      max_tokens: z.number().int().positive().optional(),
      add_special_tokens: z.boolean().optional(),
      recipe: z.enum(ENCODER_RECIPES).optional(),
      modality: z.enum(ENCODER_MODALITIES).optional(),
      soft_per_chunk: z.literal(SOFT_PER_CHUNK).optional(),
      normalize: z.union([z.boolean(), z.enum(['l2', 'none']).transform((form) => form === 'l2')]).optional(),
    })
    .default({}),
});
type ProjectorConfig = z.output<typeof configSchema>['encoder'];

/**
 * The `encoder` object of a projector's `config.json`; empty if there is no such file.
 * @throws ServingError projector_invalid
 */
export async function readProjectorConfig(path: string): Promise<ProjectorConfig> {
  const text = await readFile(path, 'utf8').catch(() => undefined);
  if (text === undefined) return {};
  try {
    return configSchema.parse(JSON.parse(text)).encoder;
  } catch (error) {
    const why = error instanceof z.ZodError ? z.prettifyError(error) : String(error);
    throw new ServingError('projector_invalid', `${path}: ${why}`, { cause: error });
  }
}

/** Settings from the command line. */
interface AskedSettings {
  readonly pooling?: Pooling;
  readonly maxTokens?: number;
  readonly recipe?: EncoderManifest['recipe'];
  readonly modality?: EncoderManifest['modality'];
  readonly softPerChunk?: SoftPerChunk | undefined;
}

/**
 * @throws ServingError config_invalid for settings that this encoder cannot have: tokens, recipe or modality;
 *   projector_invalid where the projector was trained with another encoder, as far as its config.json says so.
 */
export function encoderSettings(spec: NetworkSpec, config: ProjectorConfig, asked: AskedSettings): EncoderSettings {
  assertTrainedWith(spec, config);
  const longest = maxInputTokens(spec);
  const maxTokens = asked.maxTokens ?? config.max_tokens ?? Math.min(DEFAULT_MAX_TOKENS, longest);
  if (maxTokens > longest) {
    throw new ServingError(
      'config_invalid',
      `the encoder takes at most ${longest} tokens, and ${maxTokens} were asked for`,
    );
  }
  const { architecture } = spec;
  const recipe = asked.recipe ?? config.recipe ?? 'authors';
  const modality = asked.modality ?? config.modality ?? 'source';
  const own = architecture === 'bert' ? spec.pooling : 'mean';
  const pooling =
    asked.pooling ?? config.pooling ?? (architecture === 'qwen3' || recipe === 'published' ? 'last' : own);
  if (recipe === 'published' && (!isDecoder(spec) || pooling !== 'last')) {
    throw new ServingError(
      'config_invalid',
      `--encoder-recipe published pools a language model's last token, and cannot pool the ${pooling} of ${architecture}`,
    );
  }
  if (modality === 'ast' && architecture !== 'roberta') {
    throw new ServingError(
      'config_invalid',
      `--encoder-modality ast needs UniXcoder (roberta) as the encoder: ${architecture} does not read syntax trees`,
    );
  }
  const softPerChunk = asked.softPerChunk ?? config.soft_per_chunk ?? 1;
  return {
    maxTokens,
    pooling,
    normalize: config.normalize ?? true,
    input: architecture === 'roberta' ? 'unixcoder' : 'text',
    addSpecialTokens: config.add_special_tokens ?? (architecture === 'jina' || architecture === 'bert'),
    recipe,
    modality,
    queryPrefix: recipe === 'published' ? QUERY_INSTRUCTION : '',
    // Digests of these settings, under which embeddings are kept, stay what they were for one soft token per chunk.
    ...(softPerChunk > 1 && { softPerChunk }),
  };
}

/** Widths alone would not tell: UniXcoder and Jina's encoder have 768 each. */
function assertTrainedWith(
  spec: NetworkSpec,
  { architecture = spec.architecture, layers = spec.layers }: ProjectorConfig,
) {
  if (architecture === spec.architecture && layers === spec.layers) return;
  const found = `this one is ${spec.architecture} with ${spec.layers} layers`;
  const what = `the projector was trained with an encoder of ${architecture} with ${layers} layers, and ${found}`;
  throw new ServingError('projector_invalid', `${what}: name with --encoder the one that it was trained with`);
}
