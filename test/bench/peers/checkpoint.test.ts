/** What is written for other servers is what our own exporter reads. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { writeCheckpoint } from '../../../bench/peers/checkpoint.ts';
import { SafetensorsFile } from '../../../services/lib/model/checkpoint/safetensors.ts';
import { openSourceNetwork } from '../../../services/lib/model/checkpoint/source-network.ts';
import { synthesize } from '../../../services/lib/model/checkpoint/synth.ts';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import { readJsonFile, temporaryFolder } from '../../support/models.ts';

const parent = await temporaryFolder();

const CONFIG = {
  hidden_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  intermediate_size: 48,
  vocab_size: 4096,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-6,
  rope_theta: 10_000,
  hidden_act: 'silu',
};

test.each([
  ['qwen2', 'Qwen2ForCausalLM', true, 1 + 2 * 12 + 1],
  ['llama', 'LlamaForCausalLM', false, 1 + 2 * 9 + 2],
  ['qwen3', 'Qwen3ForCausalLM', true, 1 + 2 * 11 + 1],
])('a folder of %s has its class, every tensor and a tokenizer', async (type, className, tied, count) => {
  const shape = join(parent, type, 'config.json');
  const to = join(parent, `${type}-written`);
  await mkdir(join(parent, type));
  await writeFile(shape, JSON.stringify({ ...CONFIG, model_type: type, tie_word_embeddings: tied }));
  await writeCheckpoint(shape, 7, to);
  const drawn = await synthesize(shape, 7);
  await using written = await openSourceNetwork(to);
  expect(written.spec).toEqual(drawn.spec);
  const file = await SafetensorsFile.open(join(to, 'model.safetensors'));
  const names = [...file.tensors.keys()];
  await file.close();
  expect(names).toHaveLength(count);
  for (const name of names) expect(await written.weights.read(name)).toEqual(await drawn.weights.read(name));
  expect(await readJsonFile(join(to, 'config.json'))).toMatchObject({ architectures: [className] });
  const tokenizer = await loadTokenizer(to);
  expect(tokenizer.decode(tokenizer.encode('def f(x):'))).toBe('def f(x):');
});
