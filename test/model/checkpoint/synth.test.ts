/**
 * Models with random weights: every published shape has a fitting tokenizer, and the same seed gives the same bytes.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { verifyBundle } from '../../../services/lib/model/bundle/integrity.ts';
import { ENCODERS, SHAPES, synthesize, synthesizeEncoder } from '../../../services/lib/model/checkpoint/synth.ts';
import { choosePromptFormat } from '../../../services/lib/text/prompt-format.ts';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import { temporaryFolder } from '../../support/models.ts';

const parent = await temporaryFolder();
const CONFIG = {
  model_type: 'llama',
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  vocab_size: 4096,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-6,
  rope_theta: 10_000,
  tie_word_embeddings: true,
  hidden_act: 'silu',
  eos_token_id: 2,
};

async function configFile(vocab: number): Promise<string> {
  const dir = join(parent, `tiny-${vocab}`);
  await mkdir(dir, { recursive: true });
  await writeFile(join(dir, 'config.json'), JSON.stringify({ ...CONFIG, vocab_size: vocab }));
  return join(dir, 'config.json');
}

test('every shape can fill in the middle: its tokenizer has the tokens for it, and its vocabulary has all ids', async () => {
  const loaded = new Map<string, ReturnType<typeof loadTokenizer>>();
  for (const name of Object.keys(SHAPES) as (keyof typeof SHAPES)[]) {
    await using network = await synthesize(name, 1);
    const dir = network.tokenizerDir;
    if (!loaded.has(dir)) loaded.set(dir, loadTokenizer(dir));
    const tokenizer = await loaded.get(dir)!;
    expect(tokenizer.vocabSize, name).toBeLessThanOrEqual(network.spec.vocab);
    expect(choosePromptFormat(tokenizer).frame, name).toBeDefined();
    expect(
      network.spec.eosIds.map((id) => tokenizer.decode([id])),
      name,
    ).toEqual(['<|endoftext|>']);
    expect(network.tokenizerOf).toBe(name === 'smollm2-135m' ? 'tiny-coder' : 'qwen2.5');
    expect(network.weights.shapeOf('model.layers.0.mlp.down_proj.weight')).toEqual([
      SHAPES[name].hidden,
      SHAPES[name].intermediate,
    ]);
  }
});

test('the same seed gives the same bytes and another seed others, and the manifest says whose tokenizer it is', async () => {
  const config = await configFile(4096);
  const made = async (name: string, seed: number) => {
    await using llm = await synthesize(config, seed);
    return exportBundle({ llm, to: join(parent, name), precision: 'int4' });
  };
  const first = await made('first', 1);
  expect(await made('again', 1)).toEqual(first);
  expect((await made('other', 2)).fingerprint).not.toBe(first.fingerprint);
  const bundle = await openBundle(join(parent, 'first'));
  await verifyBundle(bundle);
  expect(bundle.manifest.tokenizer.of).toBe('tiny-coder');
});

test('the encoder has the published shape of Qwen3-Embedding-0.6B, and the stand-in differs in its layers alone', async () => {
  await using published = synthesizeEncoder('qwen3-embedding-0.6b', 1);
  await using standIn = synthesizeEncoder('stand-in', 1);
  // The figures of Qwen/Qwen3-Embedding-0.6B's config.json.
  expect(published.spec).toMatchObject({
    architecture: 'qwen3',
    layers: 28,
    hidden: 1024,
    heads: 16,
    kvHeads: 8,
    headDim: 128,
    intermediate: 3072,
    vocab: 151_669,
  });
  expect(standIn.spec).toEqual({ ...published.spec, layers: 2 });
  for (const [shape, network] of Object.entries({ 'qwen3-embedding-0.6b': published, 'stand-in': standIn })) {
    expect(network.name).toBe(ENCODERS[shape as keyof typeof ENCODERS].name);
  }
  expect(standIn.name).toContain('2-layers');
});

test('a vocabulary that holds neither tokenizer is refused', async () => {
  await expect(synthesize(await configFile(1000), 1)).rejects.toThrow(
    expect.objectContaining({ code: 'config_invalid', message: expect.stringMatching(/1000 token ids.*4096/) }),
  );
});

test("every matrix of the published shapes has a number of outputs that CUDA's fast kernels for 4 and 8 bits take", () => {
  for (const [name, { hidden, heads, kvHeads, headDim, intermediate, vocab }] of Object.entries(SHAPES)) {
    for (const outputs of [hidden, (heads + 2 * kvHeads) * headDim, intermediate, vocab]) {
      expect(outputs % 64, `${name}: ${outputs}`).toBe(0);
    }
  }
});
