/** Compares the encoder and projector of the model that ships with PyTorch. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Bundle, openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { SafetensorsFile } from '../../../services/lib/model/checkpoint/safetensors.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { type ContextEncoder, loadContextEncoder } from '../../../services/lib/rag/encode/encode.ts';
import { loadQueryEncoder } from '../../../services/lib/rag/search/query-encoder.ts';
import { contextFingerprint, NO_VECTORS } from '../../../services/lib/rag/store/row.ts';

const MODEL = join(PACKAGE_ROOT, 'models', 'tiny-coder');
const OPTIONS = { threads: 2 } as const;

let dir: string;
let bundle: Bundle;
let encoder: ContextEncoder & { dispose(): void };
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-encode-'));
  await exportBundle({ llm: MODEL, to: join(dir, 'bundle'), precision: 'fp32' });
  bundle = await openBundle(join(dir, 'bundle'));
  encoder = await loadContextEncoder(bundle, OPTIONS);
});
afterAll(async () => {
  encoder.dispose();
  await rm(dir, { recursive: true, force: true });
});

/** Vectors of texts, whatever file they are of. */
const encode = async (texts: readonly string[], signal?: AbortSignal) =>
  (
    await encoder.encode(
      texts.map((text) => ({ path: 'a.py', text })),
      signal,
    )
  ).map(({ vector }) => vector);

const largestDifference = (a: Float32Array, b: Float32Array) =>
  a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - (b[i] as number))), 0);

test('the vectors are those of PyTorch', async () => {
  const { projector } = JSON.parse(await readFile(join(MODEL, 'expected.json'), 'utf8')) as {
    projector: { chunks: string[] };
  };
  const file = await SafetensorsFile.open(join(MODEL, 'projector', 'expected.safetensors'));
  const expected = await file.read('soft_tokens');
  await file.close();
  const vectors = await encode(projector.chunks);
  expect(vectors).toHaveLength(projector.chunks.length);
  for (const [i, vector] of vectors.entries()) {
    const golden = expected.subarray(i * encoder.hidden, (i + 1) * encoder.hidden);
    expect(vector).toHaveLength(encoder.hidden);
    expect(largestDifference(vector, golden)).toBeLessThan(1e-4);
  }
});

test('neither the order of texts nor the other texts in a batch change a vector', async () => {
  const texts = Array.from(
    { length: 40 },
    (_, i) => `def f_${i}(x):\n${'    x = x + 1\n'.repeat((i * 7) % 40)}    return x`,
  );
  const together = await encode(texts);
  for (const i of [0, 17, 39]) {
    const [alone] = (await encode([texts[i] as string])) as [Float32Array];
    expect(largestDifference(alone, together[i] as Float32Array)).toBeLessThan(1e-5);
  }
  const reversed = await encode(texts.toReversed());
  expect(largestDifference(reversed.at(-1) as Float32Array, together[0] as Float32Array)).toBeLessThan(1e-5);
});

test('with 8-bit weights, too, a chunk has the same vector alone, among its neighbours and sorted by length', async () => {
  await exportBundle({ llm: MODEL, to: join(dir, 'int8'), precision: 'int8', prefillPrecision: 'same' });
  const quantised = await loadContextEncoder(await openBundle(join(dir, 'int8')), OPTIONS);
  try {
    const chunks = Array.from({ length: 24 }, (_, i) => ({
      path: 'a.py',
      text: `def f_${i}(x):\n${'    x = x + 1\n'.repeat((i * 7) % 40)}    return x`,
    }));
    const sorted = await quantised.encode(chunks);
    for (let start = 0; start < chunks.length; start += 4) {
      const neighbours = await quantised.encode(chunks.slice(start, start + 4));
      const [alone] = await quantised.encode(chunks.slice(start, start + 1));
      for (const [i, { vector }] of neighbours.entries()) {
        expect(largestDifference(vector, sorted[start + i]!.vector)).toBeLessThan(1e-4);
      }
      expect(largestDifference(alone!.vector, sorted[start]!.vector)).toBeLessThan(1e-4);
    }
  } finally {
    quantised.dispose();
  }
});

test('a text is read only as far as the model was trained for', async () => {
  const long = 'alpha beta gamma delta '.repeat(2_000);
  const [whole, cut] = (await encode([long, `${long}omega`])) as [Float32Array, Float32Array];
  expect(largestDifference(whole, cut)).toBe(0);
});

test('no chunks give no vectors, and an empty text gives a vector', async () => {
  expect(await encode([])).toEqual([]);
  const [empty] = await encode(['']);
  expect(empty?.every(Number.isFinite)).toBe(true);
});

test('encoding stops at its signal', async () => {
  const stopped = AbortSignal.abort(new Error('stop'));
  await expect(encode(['x'], stopped)).rejects.toThrow('stop');
});

test('embeddings are kept for a retriever that compares them, under a fingerprint of their own', async () => {
  const keeping = await loadContextEncoder(bundle, { ...OPTIONS, retriever: 'dense' });
  const queries = await loadQueryEncoder(bundle, OPTIONS);
  try {
    const text = 'def total(cart):\n    return sum(line.price for line in cart)';
    const [kept] = await keeping.encode([{ path: 'a.py', text }]);
    const [bare] = await encoder.encode([{ path: 'a.py', text }]);
    expect(kept?.vector).toEqual(bare?.vector);
    expect(bare?.embedding).toBeUndefined();
    expect(kept?.embedding).toHaveLength(bundle.manifest.context!.encoder.dim);
    expect(Math.hypot(...kept!.embedding!)).toBeCloseTo(1, 5);
    expect(keeping.fingerprint).not.toBe(encoder.fingerprint);
    expect(contextFingerprint(keeping.fingerprint)).toBe(encoder.fingerprint);
    // A query is encoded like a chunk.
    expect(queries.fingerprint).toBe(encoder.fingerprint);
    expect(largestDifference(await queries.embed(text), kept!.embedding!)).toBeLessThan(1e-6);
  } finally {
    keeping.dispose();
    queries.dispose();
  }
});

describe('a bundle without encoder and projector', () => {
  const bare = (): Bundle => ({ ...bundle, context: undefined });

  test('gives chunks without vectors, under a fingerprint of their own', async () => {
    const textOnly = await loadContextEncoder(bare(), OPTIONS);
    expect(textOnly).toMatchObject({ fingerprint: NO_VECTORS, hidden: 0 });
    const chunks = [
      { path: 'a.py', text: 'x = 1' },
      { path: 'b.py', text: '' },
    ];
    const nothing = { vector: new Float32Array(0), fellBack: false };
    expect(await textOnly.encode(chunks)).toEqual([nothing, nothing]);
    await expect(textOnly.encode(chunks, AbortSignal.abort(new Error('stop')))).rejects.toThrow('stop');
    textOnly.dispose();
  });

  test.each(['dense', 'fused'] as const)('is refused by name for an index that %s searches', async (retriever) => {
    await expect(loadContextEncoder(bare(), { ...OPTIONS, retriever })).rejects.toMatchObject({
      code: 'config_invalid',
      message: `--retriever ${retriever} compares embeddings, and ${bundle.dir} has no encoder: use jaccard or bm25, or export the model with --projector`,
    });
  });

  test('is refused by name where a query is to be encoded', async () => {
    await expect(loadQueryEncoder(bare(), OPTIONS)).rejects.toMatchObject({
      code: 'bundle_invalid',
      message: expect.stringContaining(bundle.dir),
    });
  });
});
