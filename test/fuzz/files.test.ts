/** Files of models as they may lie on a disk: read, or refused by name; never believed in part. */
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve, sep } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { FORMATS } from '../../bench/quality/command.ts';
import { Benchmark } from '../../bench/quality/samples.ts';
import { manifestSchema, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { GgufFile } from '../../services/lib/model/checkpoint/gguf-file.ts';
import { SafetensorsFile } from '../../services/lib/model/checkpoint/safetensors.ts';
import { openSourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { readTokenizerConfig, readTokenizerJson, type TokenizerJson } from '../../services/lib/text/tokenizer-json.ts';
import { benchmarkRow, benchmarkText } from '../support/benchmark-rows.ts';
import { type GgufPair, ggufBytes, STORED, tokenizerPairs } from '../support/gguf.ts';
import { damaged, distorted, fuzz, TIMEOUT_MS } from './budget.ts';

const dir = await mkdtemp(join(tmpdir(), 'llavacode-fuzz-'));
afterAll(() => rm(dir, { recursive: true, force: true }));
/** It has an encoder and a projector. */
const model = join(import.meta.dirname, '..', '..', 'models', 'tiny-coder');

/** The result of `read`; undefined where it was refused with the code. */
async function orRefused<T>(code: string, read: () => Promise<T> | T): Promise<T | undefined> {
  try {
    return await read();
  } catch (error) {
    expect(error).toBeInstanceOf(ServingError);
    expect(error).toMatchObject({ code });
    return undefined;
  }
}

/** A value with one of its fields distorted: of whole ones too few would be taken. */
const inPart = (value: object) =>
  fc
    .constantFrom(...Object.entries(value))
    .chain(([name, field]) => distorted(field).map((odd) => ({ ...value, [name]: odd })));

const HEADER = {
  __metadata__: { format: 'pt' },
  a: { dtype: 'F32', shape: [2, 3], data_offsets: [0, 24] },
  b: { dtype: 'F16', shape: [4], data_offsets: [24, 32] },
  c: { dtype: 'BF16', shape: [0, 7], data_offsets: [32, 32] },
};
const DATA = Buffer.alloc(32, 1);

function safetensors(header: unknown): Buffer {
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, DATA]);
}

test('a safetensors file that opens can be read to its last tensor, or is refused with a code', {
  timeout: TIMEOUT_MS,
}, async () => {
  const path = join(dir, 'fuzz.safetensors');
  const files = fc.oneof(distorted(HEADER).map(safetensors), damaged(fc.constant(safetensors(HEADER))));
  await fuzz('safetensors', files, async (bytes) => {
    await writeFile(path, bytes);
    const file = await orRefused('checkpoint_invalid', () => SafetensorsFile.open(path));
    try {
      for (const [name, { shape, dtype }] of file?.tensors ?? []) {
        const values = await orRefused('checkpoint_invalid', () => file!.read(name));
        if (values) expect(values, dtype).toHaveLength(shape.reduce((product, size) => product * size, 1));
      }
    } finally {
      await file?.close();
    }
    return file !== undefined;
  });
});

/** A network of one layer whose tables are in blocks, and whose header takes most of the file. */
const GGUF = (() => {
  const [hidden, vocab] = [32, 300];
  const pairs: GgufPair[] = [
    ['general.architecture', 'string', 'llama'],
    ['llama.context_length', 'u32', 64],
    ['llama.embedding_length', 'u32', hidden],
    ['llama.block_count', 'u32', 1],
    ['llama.feed_forward_length', 'u32', 32],
    ['llama.attention.head_count', 'u32', 2],
    ['llama.attention.layer_norm_rms_epsilon', 'f32', 1e-5],
    ...tokenizerPairs(
      { added_tokens: [], model: { vocab: { a: 0, b: 1, ab: 2 }, merges: ['a b'] } },
      'qwen2',
      vocab,
      2,
    ),
  ];
  const table = new Float32Array(vocab * hidden).fill(1);
  const shape = [vocab, hidden];
  return [
    ...[pairs, pairs.slice(0, 9)].map((some) =>
      ggufBytes(some, [
        { name: 'token_embd.weight', shape, type: STORED.Q4_0.type, bytes: STORED.Q4_0.encode(table) },
        { name: 'output.weight', shape, type: STORED.Q8_0.type, bytes: STORED.Q8_0.encode(table) },
      ]),
    ),
  ];
})();

test('a GGUF file that opens can be read to its last tensor, or is refused with a code', {
  timeout: TIMEOUT_MS,
}, async () => {
  const path = join(dir, 'fuzz.gguf');
  await fuzz('GGUF', damaged(fc.constantFrom(...GGUF)), async (bytes) => {
    await writeFile(path, bytes);
    const file = await orRefused('checkpoint_invalid', () => GgufFile.open(path));
    try {
      for (const [name, { shape, type }] of file?.tensors ?? []) {
        const values = await orRefused('checkpoint_invalid', () => file!.read(name));
        if (values) expect(values, type.name).toHaveLength(shape.reduce((product, size) => product * size, 1));
      }
    } finally {
      await file?.close();
    }
    const network = await orRefused('checkpoint_invalid', () => openSourceNetwork(path));
    await network?.[Symbol.asyncDispose]();
    return file !== undefined;
  });
});

test('a manifest that opens names only files within the bundle', { timeout: TIMEOUT_MS }, async () => {
  const to = join(dir, 'bundle');
  await exportBundle({ llm: model, to, precision: 'fp32' });
  const path = join(to, 'manifest.json');
  const text = await readFile(path);
  const manifest = manifestSchema.parse(JSON.parse(text.toString()));
  await mkdir(join(dir, 'outside'));
  await copyFile(join(to, 'tokenizer.json'), join(dir, 'outside', 'tokenizer.json'));
  const own = manifest.tokenizer.files.find((file) => file.path === 'tokenizer.json')!;
  // The encoder's tokenizer may lie elsewhere, and is there in its full size.
  const elsewhere = fc
    .constantFrom('../outside', 'llm/../../outside', join(dir, 'outside'), '.', './', '')
    .map((folder) => {
      const { context, ...rest } = manifest;
      const tokenizer = `${folder}/tokenizer.json`;
      const encoder = { ...context!.encoder, tokenizer };
      const files = [...encoder.files, { ...own, path: tokenizer }];
      return { ...rest, context: { ...context, encoder: { ...encoder, files } } };
    });
  const texts = fc.oneof(
    fc
      .oneof(fc.constant(manifest), elsewhere)
      .chain(inPart)
      .map((value) => Buffer.from(JSON.stringify(value))),
    damaged(fc.constant(text)),
  );
  let withContext = false;
  await fuzz('manifests', texts, async (bytes) => {
    await writeFile(path, bytes);
    const bundle = await orRefused('bundle_invalid', () => openBundle(to));
    if (!bundle) return false;
    const { llm, prefill, tokenizerDir, context } = bundle;
    for (const found of [llm, prefill, tokenizerDir, ...Object.values(context ?? {})]) {
      expect(`${resolve(found)}${sep}`.startsWith(resolve(to) + sep), found).toBe(true);
    }
    withContext ||= context !== undefined;
    return true;
  });
  expect(withContext).toBe(true);
});

/** The shipped tokenizer with its first merges alone: as many as are needed to break. */
const TOKENIZER = await (async () => {
  const json = JSON.parse(await readFile(join(model, 'tokenizer.json'), 'utf8'));
  const { vocab, merges, ...rest } = json.model;
  const [bytes, merged] = [256, 200];
  const entries = Object.entries<number>(vocab).filter(([, id]) => id < bytes + merged);
  return {
    ...json,
    added_tokens: json.added_tokens.map((token: object, i: number) => ({ ...token, id: bytes + merged + i })),
    model: { ...rest, vocab: Object.fromEntries(entries), merges: merges.slice(0, merged) },
  };
})();

/** Whether it splits as the whole one does, every id is one token's, and whatever is merged is a token. */
function isSound({ normalizer, pre_tokenizer, added_tokens, model }: TokenizerJson): boolean {
  const { vocab, merges, ...rest } = model;
  const { vocab: _, merges: __, ...whole } = TOKENIZER.model;
  const ids = [...Object.values(vocab), ...added_tokens.map(({ id }) => id)];
  return (
    isDeepStrictEqual(
      { normalizer, pre_tokenizer, ...rest },
      { normalizer: null, pre_tokenizer: TOKENIZER.pre_tokenizer, ...whole },
    ) &&
    new Set(ids).size === ids.length &&
    merges.every((merge) => typeof merge !== 'string' && Object.hasOwn(vocab, merge.join('')))
  );
}

test('a tokenizer that loads gives ids of its own, and a sound one gives the text again', {
  timeout: TIMEOUT_MS,
}, async () => {
  const { vocab, merges, ...model } = TOKENIZER.model;
  // Breaking a few of the hundreds of entries is enough; the rest stays as it is.
  const near = fc
    .tuple(
      inPart({ ...TOKENIZER, model }),
      distorted(Object.fromEntries(Object.entries(vocab).slice(-3))),
      distorted(merges.slice(-3)),
    )
    .map(([rest, entries, last]) => {
      const whole = rest as typeof TOKENIZER;
      if (typeof whole?.model !== 'object' || whole.model === null || Array.isArray(whole.model))
        return JSON.stringify(whole);
      const more = {
        vocab: { ...vocab, ...(entries as object) },
        merges: [...merges.slice(0, -3), ...(Array.isArray(last) ? last : [last])],
      };
      return JSON.stringify({ ...whole, model: { ...whole.model, ...more } });
    });
  const files = fc.oneof(
    near,
    damaged(fc.constant(Buffer.from(JSON.stringify(TOKENIZER)))).map((bytes) => Buffer.from(bytes).toString()),
  );
  const config = fc.oneof(
    fc.constant('{}'),
    distorted({ eos_token: { content: '</s>' } }).map((value) => JSON.stringify(value)),
  );
  const inputs = fc.tuple(files, config, fc.string({ unit: 'binary', maxLength: 20 }));
  let sound = 0;
  await fuzz('tokenizers', inputs, async ([file, settings, input]) => {
    const loaded = await orRefused('bundle_invalid', () => {
      const read = readTokenizerJson(file, 'tokenizer.json');
      return { read, tokenizer: new Tokenizer(read, readTokenizerConfig(settings, 'tokenizer_config.json')) };
    });
    if (!loaded) return false;
    const { read, tokenizer } = loaded;
    const ids = tokenizer.encode(input);
    for (const id of ids) {
      const known = Number.isInteger(id) && id >= 0 && id < tokenizer.vocabSize;
      expect(known, `id ${id} of ${JSON.stringify(input)}`).toBe(true);
    }
    if (isSound(read)) {
      sound++;
      expect(tokenizer.decode(ids)).toBe(Buffer.from(input).toString());
    }
    return true;
  });
  process.stdout.write(`of these tokenizers ${sound} were sound\n`);
  expect(sound).toBeGreaterThan(0);
});

test('a benchmark that opens is read to its last sample, or it is refused with file and line', {
  timeout: TIMEOUT_MS,
}, async () => {
  const benchmark = join(dir, 'fuzz.jsonl');
  const format = fc.constantFrom(...FORMATS);
  const rows = format.chain((name) => distorted(benchmarkRow(name)).map((row) => Buffer.from(JSON.stringify(row))));
  const files = fc.oneof(rows, damaged(format.map((name) => Buffer.from(benchmarkText(name)))));
  const choice: Parameters<typeof Benchmark.open>[0] = {
    benchmark,
    format: 'auto',
    language: 'python',
    samples: undefined,
    arms: ['off'],
    context: 'file',
    repositories: undefined,
  };
  const never = new AbortController().signal;
  await fuzz('benchmarks', files, async (bytes) => {
    await writeFile(benchmark, bytes);
    const opened = await orRefused('sample_invalid', () => Benchmark.open(choice, (text) => text.length, never));
    if (opened === undefined) return false;
    let samples = 0;
    for await (const { target } of opened.read()) {
      samples++;
      expect(target.trim()).not.toBe('');
    }
    expect(samples).toBe(opened.survey.samples);
    return true;
  });
});
