/**
 * A published shape with random weights as a Hugging Face folder, which other servers load: `config.json`, the weights
 * as one safetensors file, and the tokenizer. Speed does not depend on the values.
 */
import { cp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeSafetensors } from '../../services/lib/model/checkpoint/safetensors-writer.ts';
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { synthesize } from '../../services/lib/model/checkpoint/synth.ts';
import { makeFolder } from '../../services/lib/process/os-errors.ts';
import { transformersConfig } from '../harness/transformers-config.ts';

const CLASSES = { qwen2: 'Qwen2ForCausalLM', llama: 'LlamaForCausalLM', qwen3: 'Qwen3ForCausalLM' } as const;

/** Tensors of one layer; a shape has those that its architecture has. */
const LAYER = [
  'input_layernorm.weight',
  ...['q', 'k', 'v'].flatMap((head) => [`self_attn.${head}_proj.weight`, `self_attn.${head}_proj.bias`]),
  'self_attn.q_norm.weight',
  'self_attn.k_norm.weight',
  'self_attn.o_proj.weight',
  'post_attention_layernorm.weight',
  ...['gate', 'up', 'down'].map((part) => `mlp.${part}_proj.weight`),
];

/**
 * Writes the folder `to`. The file has 32-bit floats, and `config.json` says bfloat16: servers convert as they load.
 * All weights are in memory meanwhile: 2 GB for 0.5 billion.
 * @param shape name of a published shape, or path of a `config.json`. Errors are those of {@link synthesize}, and
 *   path_unusable.
 */
export async function writeCheckpoint(shape: string, seed: number, to: string): Promise<void> {
  const { spec, weights, tokenizerDir } = await synthesize(shape, seed);
  const layers = Array.from({ length: spec.layers }, (_, i) => LAYER.map((name) => `model.layers.${i}.${name}`));
  const tensors = new Map<string, { readonly shape: readonly number[]; readonly data: Float32Array }>();
  for (const name of ['model.embed_tokens.weight', ...layers.flat(), 'model.norm.weight', 'lm_head.weight']) {
    const shape = weights.shapeOf(name);
    if (shape !== undefined) tensors.set(name, { shape, data: await weights.read(name) });
  }
  await makeFolder(to);
  for (const file of ['tokenizer.json', 'tokenizer_config.json']) await cp(join(tokenizerDir, file), join(to, file));
  await writeFile(join(to, 'config.json'), `${JSON.stringify(configOf(spec), undefined, 2)}\n`);
  await writeSafetensors(join(to, 'model.safetensors'), tensors, { format: 'pt' });
}

const configOf = (spec: DecoderSpec) => ({
  architectures: [CLASSES[spec.architecture]],
  ...transformersConfig(spec),
  hidden_act: 'silu',
  eos_token_id: spec.eosIds,
  torch_dtype: 'bfloat16',
});
