/** Files of models as they may lie on a disk: read, or refused by name; never believed in part. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve, sep } from 'node:path';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { openBundle } from '../../services/lib/model/bundle.ts';
import { exportBundle } from '../../services/lib/model/export.ts';
import { SafetensorsFile } from '../../services/lib/model/safetensors.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { readTokenizerConfig, readTokenizerJson } from '../../services/lib/text/tokenizer-json.ts';
import { damaged, distorted, fuzz, TIMEOUT_MS } from './budget.ts';

const dir = await mkdtemp(join(tmpdir(), 'llavacode-fuzz-'));
afterAll(() => rm(dir, { recursive: true, force: true }));
const golden = join(import.meta.dirname, '..', 'goldens', 'llama');

/** What `read` gives; undefined where it was refused with the code. */
async function orRefused<T>(code: string, read: () => Promise<T> | T): Promise<T | undefined> {
  try {
    return await read();
  } catch (error) {
    expect(error).toBeInstanceOf(ServingError);
    expect(error).toMatchObject({ code });
    return undefined;
  }
}

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

test('safetensors: what is opened can be read to its last tensor', { timeout: TIMEOUT_MS }, async () => {
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

test('manifests: what is opened lies within the bundle', { timeout: TIMEOUT_MS }, async () => {
  const to = join(dir, 'bundle');
  await exportBundle({ llm: golden, to, precision: 'fp32' });
  const path = join(to, 'manifest.json');
  const text = await readFile(path);
  const texts = fc.oneof(
    distorted(JSON.parse(text.toString())).map((manifest) => Buffer.from(JSON.stringify(manifest))),
    damaged(fc.constant(text)),
  );
  await fuzz('manifests', texts, async (bytes) => {
    await writeFile(path, bytes);
    const bundle = await orRefused('bundle_invalid', () => openBundle(to));
    if (bundle) expect(resolve(bundle.llm).startsWith(resolve(to) + sep)).toBe(true);
    return bundle !== undefined;
  });
});

test('tokenizers: what is loaded gives back what it was given', { timeout: TIMEOUT_MS }, async () => {
  const text = await readFile(join(golden, 'tokenizer.json'), 'utf8');
  const json = JSON.parse(text);
  const { vocab, merges, ...model } = json.model;
  // Of thousands of entries a few are enough to break; the rest stays what it is.
  const near = fc
    .tuple(
      distorted({ ...json, model }),
      distorted(Object.fromEntries(Object.entries(vocab).slice(-3))),
      distorted(merges.slice(-3)),
    )
    .map(([rest, entries, last]) => {
      const whole = rest as typeof json;
      if (typeof whole?.model !== 'object' || whole.model === null || Array.isArray(whole.model))
        return JSON.stringify(whole);
      const more = {
        vocab: { ...vocab, ...(entries as object) },
        merges: [...merges, ...(Array.isArray(last) ? last : [last])],
      };
      return JSON.stringify({ ...whole, model: { ...whole.model, ...more } });
    });
  const files = fc.oneof(
    near,
    damaged(fc.constant(Buffer.from(text))).map((bytes) => Buffer.from(bytes).toString()),
  );
  const config = fc.oneof(
    fc.constant('{}'),
    distorted({ eos_token: { content: '</s>' } }).map((value) => JSON.stringify(value)),
  );
  const inputs = fc.tuple(files, config, fc.string({ unit: 'binary', maxLength: 20 }));
  await fuzz('tokenizers', inputs, async ([file, settings, input]) => {
    const tokenizer = await orRefused('bundle_invalid', () => {
      const read = readTokenizerJson(file, 'tokenizer.json');
      return new Tokenizer(read, readTokenizerConfig(settings, 'tokenizer_config.json'));
    });
    if (!tokenizer) return false;
    for (const id of tokenizer.encode(input)) {
      expect(Number.isInteger(id) && id >= 0 && id < tokenizer.vocabSize, `id ${id} of ${JSON.stringify(input)}`).toBe(
        true,
      );
    }
    return true;
  });
});
