/** Bundles are exported whole or not at all, the same every time, and refused if they do not match their manifest. */
import { appendFile, cp, mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  assertRunsOn,
  type Bundle,
  type Manifest,
  openBundle,
  promptPart,
} from '../../../services/lib/model/bundle/bundle.ts';
import { PRECISIONS, type Precision } from '../../../services/lib/model/bundle/choices.ts';
import { type ExportOptions, exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { verifyBundle } from '../../../services/lib/model/bundle/integrity.ts';
import { GOLDENS, readJsonFile, safetensorsBytes, temporaryFolder } from '../../support/models.ts';

const parent = await temporaryFolder();
const LLM = join(GOLDENS, 'qwen2-tied');
const MLP3 = join(GOLDENS, 'projector-mlp3');
const place = (name: string) => join(parent, name, 'bundle');
const exportTo = (name: string, options: Partial<ExportOptions> = {}) =>
  exportBundle({ llm: LLM, to: place(name), precision: 'fp32', ...options });
const refused = (code: string, ...parts: string[]) =>
  expect.objectContaining({ code, message: expect.stringMatching(new RegExp(parts.join('.*'))) });

/** A projector of the given widths: the golden projector fits none of the golden encoders. */
async function projectorFrom(encoderDim: number, hidden: number, name: string): Promise<string> {
  const shapes = {
    'linear_1.weight': [hidden, encoderDim],
    'linear_1.bias': [hidden],
    'ln_1.weight': [hidden],
    'ln_1.bias': [hidden],
    'linear_2.weight': [hidden, hidden],
    'linear_2.bias': [hidden],
  };
  let at = 0;
  const header = Object.fromEntries(
    Object.entries(shapes).map(([tensor, shape]) => {
      const begin = at;
      at += 4 * shape.reduce((product, dim) => product * dim, 1);
      return [tensor, { dtype: 'F32', shape, data_offsets: [begin, at] }];
    }),
  );
  const dir = join(parent, name);
  await mkdir(dir);
  await writeFile(join(dir, 'model.safetensors'), safetensorsBytes(header, at));
  return dir;
}

/** A golden encoder with a tokenizer added, which the goldens leave out. */
async function encoderFolder(golden: string): Promise<string> {
  const dir = join(parent, `hf-${golden}`);
  await cp(join(GOLDENS, golden), dir, { recursive: true });
  await cp(join(LLM, 'tokenizer.json'), join(dir, 'tokenizer.json'));
  return dir;
}

describe('exporting', async () => {
  test('two exports of the same model have the same fingerprint, and another precision or model has another', async () => {
    const first = await exportTo('once');
    const again = await exportTo('again');
    expect(again).toEqual(first);
    expect(await exportTo('renamed', { name: 'other' })).toEqual({ ...first, name: 'other' });
    const others: Partial<ExportOptions>[] = [
      { precision: 'int8' },
      { precision: 'int4' },
      { precision: 'int4', block: 32 },
      { maxPositions: 64 },
      { llm: join(GOLDENS, 'llama') },
    ];
    const fingerprints = [first.fingerprint];
    for (const [i, options] of others.entries()) fingerprints.push((await exportTo(`other-${i}`, options)).fingerprint);
    expect(new Set(fingerprints).size).toBe(fingerprints.length);
  });

  test('a bundle of a language model alone has no context', async () => {
    const manifest = await exportTo('alone');
    expect(manifest).toMatchObject({ name: 'qwen2-tied', precision: 'fp32', llm: { maxPositions: 2048 } });
    expect(manifest.context).toBeUndefined();
    const bundle = await openBundle(place('alone'));
    expect(bundle.manifest).toEqual(manifest);
    expect(bundle.context).toBeUndefined();
    expect(await readdir(bundle.dir)).toEqual(['llm', 'manifest.json', 'tokenizer.json']);
    await verifyBundle(bundle);
  });

  test.each([
    ['qwen3-embedding', { kind: 'qwen3', pooling: 'last', input: 'text', maxTokens: 512 }],
    ['unixcoder', { kind: 'roberta', pooling: 'mean', input: 'unixcoder', maxTokens: 128 }],
    ['bert', { kind: 'bert', pooling: 'mean', input: 'text', maxTokens: 66, addSpecialTokens: true, layers: 2 }],
  ])('a bundle with %s as the encoder has the settings of its architecture', async (golden, settings) => {
    const encoder = await encoderFolder(golden);
    const projector = await projectorFrom(64, 64, `projector-${golden}`);
    const manifest = await exportTo(golden, { encoder, projector });
    const common = {
      name: basename(encoder),
      layers: 3,
      dim: 64,
      normalize: true,
      addSpecialTokens: false,
      tokenizer: 'encoder/tokenizer.json',
    };
    expect(manifest.context).toMatchObject({
      encoder: { ...common, ...settings },
      projector: { widths: [64, 64, 64], parameters: 2 * (64 * 64 + 64) + 128 },
    });
    const bundle = await openBundle(place(golden));
    expect(bundle.context!.tokenizerDir).toBe(join(bundle.dir, 'encoder'));
    const shorter = await exportTo(`${golden}-shorter`, { encoder, projector, encoderMaxTokens: 32 });
    expect(shorter.context!.fingerprint).not.toBe(manifest.context!.fingerprint);
  });

  test('a bundle is made by the recipe and the modality that are asked for, each with a fingerprint of its own', async () => {
    const qwen = { encoder: await encoderFolder('qwen3-embedding'), projector: await projectorFrom(64, 64, 'recipe') };
    const authors = (await exportTo('authors', qwen)).context!;
    const published = (await exportTo('published', { ...qwen, encoderRecipe: 'published' })).context!;
    expect(authors.encoder).toMatchObject({ recipe: 'authors', pooling: 'last', queryPrefix: '' });
    expect(published.encoder).toMatchObject({ recipe: 'published', pooling: 'last' });
    expect(published.encoder.queryPrefix).toMatch(/^Instruct: .*\nQuery:$/);
    const unixcoder = { encoder: await encoderFolder('unixcoder'), projector: qwen.projector };
    const source = (await exportTo('source', unixcoder)).context!;
    const ast = (await exportTo('ast', { ...unixcoder, encoderModality: 'ast' })).context!;
    expect([source.encoder.modality, ast.encoder.modality]).toEqual(['source', 'ast']);
    const fingerprints = [authors, published, source, ast].map((context) => context.fingerprint);
    expect(new Set(fingerprints).size).toBe(4);
    for (const [name, options] of Object.entries({
      mean: { ...qwen, encoderRecipe: 'published', encoderPooling: 'mean' },
      roberta: { ...unixcoder, encoderRecipe: 'published' },
      trees: { ...qwen, encoderModality: 'ast' },
    } as const)) {
      await expect(exportTo(`refused-${name}`, options)).rejects.toMatchObject({ code: 'config_invalid' });
    }
  });

  test('the language model encodes as the config of the projector says, if no encoder is named', async () => {
    const projector = await projectorFrom(64, 64, 'projector-own');
    const config = { encoder: { pooling: 'last', max_tokens: 20, add_special_tokens: true, normalize: 'none' } };
    await writeFile(join(projector, 'config.json'), JSON.stringify(config));
    const { context } = await exportTo('own', { projector });
    const settings = {
      kind: 'qwen2',
      maxTokens: 20,
      normalize: false,
      addSpecialTokens: true,
      tokenizer: 'tokenizer.json',
    };
    expect(context!.encoder).toMatchObject({ ...settings, pooling: 'last' });
    const asked = await exportTo('own-asked', { projector, encoderPooling: 'mean', encoderMaxTokens: 30 });
    expect(asked.context!.encoder).toMatchObject({ ...settings, pooling: 'mean', maxTokens: 30 });
    const file = join(projector, 'model.safetensors');
    expect((await exportTo('own-file', { projector: file })).context!.encoder).toEqual(context!.encoder);
    await writeFile(join(projector, 'config.json'), JSON.stringify({ encoder: { max_tokens: -1 } }));
    await expect(exportTo('own-wrong', { projector })).rejects.toThrow(refused('projector_invalid', 'max_tokens'));
    await writeFile(join(projector, 'config.json'), JSON.stringify({ encoder: { pooling: 'the mean of all' } }));
    expect((await exportTo('own-words', { projector })).context!.encoder).toMatchObject({
      pooling: 'mean',
      maxTokens: 512,
    });
  });

  test.each<[string, Partial<ExportOptions>, string, string[]]>([
    ['a projector for other widths', { projector: MLP3 }, 'projector_invalid', ['\\[n, 48\\]', '\\[n, 64\\]']],
    ['an encoder without projector', { encoder: join(GOLDENS, 'unixcoder') }, 'config_invalid', ['projector']],
    ['an encoder as the language model', { llm: join(GOLDENS, 'unixcoder') }, 'checkpoint_invalid', ['roberta']],
    ['more positions than the model has', { maxPositions: 4096 }, 'config_invalid', ['2048', '4096']],
    ['an unknown precision', { precision: 'int2' as Precision }, 'config_invalid', ['int2', 'int8']],
    ['an unknown block', { precision: 'int4', block: 100 }, 'config_invalid', ['100']],
    ['a block that CUDA is slow with', { precision: 'int4-fp16', block: 16 }, 'config_invalid', ['16', '32, 64, 128']],
    [
      '8 bits for prompts of 16-bit floats',
      { precision: 'fp16', prefillPrecision: 'w8a8' },
      'config_invalid',
      ['fp16'],
    ],
  ])('%s is refused and leaves nothing behind', async (name, options, code, message) => {
    const dir = name.replaceAll(' ', '-');
    await expect(exportTo(dir, options)).rejects.toThrow(refused(code, ...message));
    expect(await readdir(join(parent, dir))).toEqual([]);
  });

  test('a folder without tokenizer is refused', async () => {
    const dir = join(parent, 'no-tokenizer');
    await cp(LLM, dir, { recursive: true });
    await rm(join(dir, 'tokenizer.json'));
    await expect(exportTo('untokenized', { llm: dir })).rejects.toThrow(
      refused('checkpoint_invalid', 'tokenizer.json'),
    );
  });

  test('a bundle is replaced as a whole, and an aborted export leaves it as it was', async () => {
    const before = await exportTo('replaced');
    const controller = new AbortController();
    const aborted = exportTo('replaced', {
      precision: 'int8',
      signal: controller.signal,
      onProgress: () => controller.abort(new Error('stop')),
    });
    await expect(aborted).rejects.toThrow('stop');
    expect((await openBundle(place('replaced'))).manifest).toEqual(before);
    const after = await exportTo('replaced', { precision: 'int8' });
    expect((await openBundle(place('replaced'))).manifest).toEqual(after);
    expect(await readdir(join(parent, 'replaced'))).toEqual(['bundle']);
  });

  test("a folder of the user's that is not a bundle is left alone", async () => {
    await mkdir(place('mine'), { recursive: true });
    await exportTo('mine');
    await mkdir(place('precious'), { recursive: true });
    await writeFile(join(place('precious'), 'thesis.txt'), 'years of work');
    await writeFile(join(place('precious'), 'manifest.json'), '{"name": "a web page"}');
    await expect(exportTo('precious')).rejects.toThrow(refused('config_invalid', 'not a model bundle'));
    expect(await readFile(join(place('precious'), 'thesis.txt'), 'utf8')).toBe('years of work');
  });
});

describe('opening', async () => {
  const original = join(parent, 'original');
  await exportBundle({
    llm: LLM,
    to: original,
    precision: 'fp32',
    projector: await projectorFrom(64, 64, 'projector-open'),
  });
  const damaged = async (name: string, damage: (dir: string) => Promise<unknown>): Promise<string> => {
    const dir = join(parent, `damaged-${name}`);
    await cp(original, dir, { recursive: true });
    await damage(dir);
    return dir;
  };
  const change = (edit: (manifest: Manifest) => unknown) => async (dir: string) => {
    const manifest = await readJsonFile<Manifest>(join(dir, 'manifest.json'));
    await writeFile(join(dir, 'manifest.json'), JSON.stringify(edit(manifest)));
  };

  test('opening a bundle gives paths of files that exist', async () => {
    const bundle: Bundle = await openBundle(original);
    const { encoder, projector, tokenizerDir } = bundle.context!;
    for (const path of [bundle.llm, encoder, projector]) expect(basename(path)).toBe('model.onnx');
    for (const path of [bundle.llm, encoder, projector, join(tokenizerDir, 'tokenizer.json')]) {
      expect((await stat(path)).isFile()).toBe(true);
    }
  });

  test('a bundle that computes in 32 bits is refused for CUDA, with the precisions to choose from', () => {
    for (const precision of PRECISIONS) {
      const manifest = { name: 'some-model', precision };
      const asserted = () => assertRunsOn(manifest, 'cuda');
      if (precision.endsWith('fp16')) asserted();
      else {
        const names = ['some-model', precision, 'export it with one of --precision fp16, int8-fp16, int4-fp16'];
        expect(asserted).toThrow(refused('config_invalid', ...names));
      }
      for (const kind of ['cpu', 'webgpu', 'plugin'] as const) assertRunsOn(manifest, kind);
    }
  });

  test('prompts are computed with W8A8 on the CPU only', async () => {
    const { manifest } = await openBundle(original);
    expect(promptPart({ ...manifest, prefill: manifest.llm }, 'cpu')).toBe('prefill');
    expect(promptPart({ ...manifest, prefill: manifest.llm }, 'webgpu')).toBe('llm');
    expect(promptPart({ ...manifest, prefill: undefined }, 'cpu')).toBe('llm');
  });

  test.each<[string, (dir: string) => Promise<unknown>, string[]]>([
    ['no manifest', (dir) => rm(join(dir, 'manifest.json')), ['manifest.json']],
    ['a manifest cut short', (dir) => writeFile(join(dir, 'manifest.json'), '{"format":'), ['manifest.json']],
    [
      'another format',
      change((m) => ({ ...m, format: 'llavacode-bundle/1' })),
      ['format', 'llavacode-bundle/2', 'export'],
    ],
    ['a bad fingerprint', change((m) => ({ ...m, fingerprint: 'abc' })), ['fingerprint']],
    [
      'a file outside',
      change((m) => ({ ...m, tokenizer: { files: [{ ...m.tokenizer.files[0], path: '../x' }] } })),
      ['within'],
    ],
    [
      'a graph not listed',
      change((m) => ({ ...m, llm: { ...m.llm, files: m.llm.files.slice(1) } })),
      ['llm/model.onnx'],
    ],
    ['weights missing', (dir) => rm(join(dir, 'encoder/model.bin')), ['encoder/model.bin is missing']],
    ['weights of another size', (dir) => appendFile(join(dir, 'llm/model.bin'), 'x'), ['llm/model.bin has \\d+ bytes']],
  ])('a bundle with %s is refused', async (name, damage, message) => {
    const dir = await damaged(name.replaceAll(' ', '-'), damage);
    await expect(openBundle(dir)).rejects.toThrow(refused('bundle_invalid', basename(dir), ...message));
  });
});
