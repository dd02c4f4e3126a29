/** Reading `config.json`, and refusing settings that are not implemented. */
import { cp, mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type DecoderSpec, maxInputTokens, parseSpec, readSpec } from '../../../services/lib/model/checkpoint/spec.ts';
import { buildDecoder } from '../../../services/lib/model/graph/decoder.ts';
import { GOLDENS, inMemory, readJsonFile, TINY_CODER, temporaryFolder } from '../../support/models.ts';

// The config published for Qwen2.5-Coder-1.5B.
const QWEN = {
  architectures: ['Qwen2ForCausalLM'],
  attention_dropout: 0,
  bos_token_id: 151643,
  eos_token_id: 151643,
  hidden_act: 'silu',
  hidden_size: 1536,
  intermediate_size: 8960,
  max_position_embeddings: 32768,
  max_window_layers: 28,
  model_type: 'qwen2',
  num_attention_heads: 12,
  num_hidden_layers: 28,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 1_000_000,
  sliding_window: 131072,
  tie_word_embeddings: true,
  use_sliding_window: false,
  vocab_size: 151936,
};
const refused = (...parts: string[]) =>
  expect.objectContaining({ code: 'checkpoint_invalid', message: expect.stringMatching(new RegExp(parts.join('.*'))) });

const emptyFolder = await temporaryFolder();

test('a folder of BERT says how states are pooled: by their mean, or by the state of the first token', async () => {
  const dir = await temporaryFolder();
  await cp(join(GOLDENS, 'bert/config.json'), join(dir, 'config.json'));
  const specWith = async (config?: object) => {
    await rm(join(dir, '1_Pooling'), { recursive: true, force: true });
    if (config) {
      await mkdir(join(dir, '1_Pooling'));
      await writeFile(join(dir, '1_Pooling/config.json'), JSON.stringify(config));
    }
    return readSpec(dir);
  };
  expect(await specWith()).toMatchObject({ architecture: 'bert', firstPosition: 0, pooling: 'mean' });
  expect(await specWith({ pooling_mode_cls_token: true })).toMatchObject({ pooling: 'cls' });
  expect(await specWith({ pooling_mode_mean_tokens: true })).toMatchObject({ pooling: 'mean' });
  await expect(specWith({ pooling_mode_max_tokens: true })).rejects.toThrow(refused('1_Pooling', 'not supported'));
  expect(maxInputTokens(await specWith())).toBe(66);
});

describe('config.json', () => {
  test('the config.json of a published model is read in full', () => {
    expect(parseSpec('config.json', QWEN)).toEqual({
      architecture: 'qwen2',
      hidden: 1536,
      layers: 28,
      heads: 12,
      kvHeads: 2,
      headDim: 128,
      intermediate: 8960,
      vocab: 151936,
      maxPositions: 32768,
      normEps: 1e-6,
      ropeTheta: 1_000_000,
      qkvBias: true,
      qkNorm: false,
      tied: true,
      eosIds: [151643],
    });
  });

  test('both spellings of rope theta are read', () => {
    const { rope_theta: _, ...rest } = QWEN;
    const newer = { ...rest, rope_parameters: { rope_theta: 5e5, rope_type: 'default' } };
    expect(parseSpec('config.json', newer)).toMatchObject({ ropeTheta: 5e5 });
    expect(parseSpec('config.json', { ...QWEN, rope_scaling: null })).toMatchObject({ ropeTheta: 1e6 });
  });

  test('each architecture has its own heads and biases', async () => {
    expect(await readSpec(join(GOLDENS, 'llama'))).toMatchObject({
      qkvBias: false,
      qkNorm: false,
      kvHeads: 3,
      eosIds: [2],
    });
    expect(await readSpec(join(GOLDENS, 'qwen3-embedding'))).toMatchObject({
      qkvBias: false,
      qkNorm: true,
      headDim: 32,
    });
    const { num_key_value_heads: _, ...plain } = QWEN;
    expect(parseSpec('config.json', { ...plain, model_type: 'llama' })).toMatchObject({ kvHeads: 12, headDim: 128 });
  });

  test('the positions of RoBERTa start after the padding id', async () => {
    const spec = await readSpec(join(GOLDENS, 'unixcoder'));
    expect(spec).toMatchObject({ architecture: 'roberta', positionRows: 130, firstPosition: 2, pooling: 'mean' });
    expect(maxInputTokens(spec)).toBe(128);
  });

  test.each<[string, object, string[]]>([
    ['an unknown architecture', { model_type: 'mamba' }, ['"mamba"', 'qwen2']],
    ['no architecture', { model_type: undefined }, ['model_type']],
    ['scaled rotation', { rope_scaling: { rope_type: 'yarn', factor: 4 } }, ['rope_scaling', 'yarn']],
    ['scaled rotation, old spelling', { rope_scaling: { type: 'linear', factor: 2 } }, ['rope_scaling', 'linear']],
    ['scaled rotation, new spelling', { rope_parameters: { rope_type: 'llama3' } }, ['rope_parameters', 'llama3']],
    ['partial rotation', { partial_rotary_factor: 0.5 }, ['partial_rotary_factor']],
    ['a sliding window in use', { use_sliding_window: true }, ['use_sliding_window']],
    ['a layer with a sliding window', { layer_types: ['full_attention', 'sliding_attention'] }, ['layer_types.1']],
    ['another activation', { hidden_act: 'gelu' }, ['hidden_act']],
    ['biases that are not implemented', { model_type: 'llama', attention_bias: true }, ['attention_bias']],
    ['heads that do not divide', { num_key_value_heads: 5 }, ['12 heads', '5']],
    ['an odd head size', { head_dim: 20 }, ['head_dim 20']],
    ['a size that is not a number', { hidden_size: 'big', vocab_size: 0 }, ['hidden_size', 'vocab_size']],
  ])('%s is refused', (_, change, message) => {
    expect(() => parseSpec('config.json', { ...QWEN, ...change })).toThrow(refused('config.json', ...message));
  });

  test('a config.json that is absent, not JSON or not an object is refused', async () => {
    const dir = emptyFolder;
    await expect(readSpec(dir)).rejects.toThrow(refused('config.json'));
    await writeFile(join(dir, 'config.json'), '{');
    await expect(readSpec(dir)).rejects.toThrow(refused('config.json'));
    await writeFile(join(dir, 'config.json'), 'null');
    await expect(readSpec(dir)).rejects.toThrow(refused('config.json', 'model_type'));
  });

  test('the end-of-text ids of generation_config.json are added', async () => {
    const dir = join(emptyFolder, 'model');
    await cp(join(TINY_CODER, 'config.json'), join(dir, 'config.json'));
    const { eos_token_id: eos } = await readJsonFile<{ eos_token_id: number }>(join(dir, 'config.json'));
    await writeFile(join(dir, 'generation_config.json'), JSON.stringify({ eos_token_id: [eos, 7] }));
    expect(await readSpec(dir)).toMatchObject({ eosIds: [eos, 7] });
    await writeFile(join(dir, 'generation_config.json'), JSON.stringify({ eos_token_id: 'end' }));
    await expect(readSpec(dir)).rejects.toThrow(refused('generation_config.json', 'eos_token_id'));
  });
});

test('weights that do not fit the config are refused before anything is written', async () => {
  const spec = (await readSpec(join(GOLDENS, 'qwen2-tied'))) as DecoderSpec;
  const format = { layers: 'fp32', vocabulary: 'fp32', maxPositions: 16 } as const;
  expect(() => buildDecoder(spec, inMemory({}), format)).toThrow(refused('embed_tokens.weight', 'missing'));
  const wide = inMemory({ 'model.embed_tokens.weight': [512, 65] });
  expect(() => buildDecoder(spec, wide, format)).toThrow(
    refused('model.embed_tokens.weight', '\\[512,65\\]', '\\[512,64\\]'),
  );
});
