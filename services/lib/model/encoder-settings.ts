/**
 * How an encoder reads a chunk and pools it: from the command line, else from the `encoder` object of the projector's
 * `config.json` (a projector is trained for one form), else as the paper's code has it for this architecture.
 */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { ServingError } from '../process/errors.ts';
import type { EncoderManifest } from './bundle.ts';
import type { Pooling } from './encoder.ts';
import { maxInputTokens, type NetworkSpec } from './spec.ts';

export type EncoderSettings = Pick<
  EncoderManifest,
  'maxTokens' | 'pooling' | 'normalize' | 'input' | 'addSpecialTokens'
>;

/** Tokens of a chunk that the paper's encoders see. */
const DEFAULT_MAX_TOKENS = 512;

const configSchema = z.object({
  encoder: z
    .object({
      // A model card in words, as early projectors have it, is not a setting.
      pooling: z.enum(['last', 'mean']).optional().catch(undefined),
      max_tokens: z.number().int().positive().optional(),
      add_special_tokens: z.boolean().optional(),
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

/** @throws ServingError config_invalid if the encoder's positions do not reach as far as asked */
export function encoderSettings(
  spec: NetworkSpec,
  config: ProjectorConfig,
  asked: { readonly pooling?: Pooling; readonly maxTokens?: number },
): EncoderSettings {
  const longest = maxInputTokens(spec);
  const maxTokens = asked.maxTokens ?? config.max_tokens ?? Math.min(DEFAULT_MAX_TOKENS, longest);
  if (maxTokens > longest) {
    throw new ServingError(
      'config_invalid',
      `the encoder takes ${longest} tokens at most, ${maxTokens} were asked for`,
    );
  }
  return {
    maxTokens,
    pooling: asked.pooling ?? config.pooling ?? (spec.architecture === 'qwen3' ? 'last' : 'mean'),
    normalize: config.normalize ?? true,
    input: spec.architecture === 'roberta' ? 'unixcoder' : 'text',
    addSpecialTokens: config.add_special_tokens ?? false,
  };
}
