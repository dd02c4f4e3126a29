/** Several soft tokens of one chunk, from its text to the logits of a prompt that has them. */
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { atOnce } from '../../../services/lib/async/turns.ts';
import { OrtSession, type Tensor } from '../../../services/lib/engine/ort.ts';
import { openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import { Checkpoint } from '../../../services/lib/model/checkpoint/checkpoint.ts';
import { encoderInputs, loadContextEncoder } from '../../../services/lib/rag/encode/encode.ts';
import { loadQueryEncoder } from '../../../services/lib/rag/search/query-encoder.ts';
import { PromptBuilder } from '../../../services/lib/text/prompt.ts';
import { choosePromptFormat } from '../../../services/lib/text/prompt-format.ts';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import { DecoderRun, GOLDENS, largestDifference, loadDecoder, temporaryFolder } from '../../support/models.ts';
import { smallestBundle } from '../../support/smallest-bundle.ts';

const PER_CHUNK = 4;
const LLM = join(GOLDENS, 'qwen2-tied');
const OPTIONS = { threads: 1 } as const;

const parent = await temporaryFolder();
const bundle = await openBundle(await smallestBundle(parent, { softPerChunk: PER_CHUNK }));
const encoder = await loadContextEncoder(bundle, { ...OPTIONS, retriever: 'dense' });
const [graph, projector] = await Promise.all(
  [bundle.context!.encoder, bundle.context!.projector].map((path) => OrtSession.load(path, OPTIONS)),
);
const tokenizer = await loadTokenizer(bundle.tokenizerDir);
afterAll(() => {
  for (const session of [encoder, graph!, projector!]) session.dispose();
});
const { hidden, spec } = { hidden: bundle.manifest.llm.spec.hidden, spec: bundle.manifest.context!.encoder };
const CHUNKS = ['def f(x):\n    return x + 1', 'y', 'class Cart:\n    def total(self):\n        return 3'].map(
  (text) => ({ path: 'a.py', text }),
);

/** One vector of an encoder's space, projected alone. */
async function project(row: Float32Array): Promise<Float32Array> {
  const embeddings: Tensor = { type: 'float32', dims: [1, spec.dim], data: row.slice() };
  return (await projector!.run({ embeddings }, ['soft_tokens']))['soft_tokens']!.data as Float32Array;
}

/** The windows of one chunk, each [dim]. */
async function windowsOf(text: string): Promise<Float32Array[]> {
  const fed = encoderInputs([tokenizer.encode(text)]);
  const windows = (await graph!.run(fed, ['windows']))['windows']!.data as Float32Array;
  return Array.from({ length: PER_CHUNK }, (_, w) => windows.slice(w * spec.dim, (w + 1) * spec.dim));
}

test('each soft token of a chunk is its window through the one projector', async () => {
  const encoded = await encoder.encode(CHUNKS);
  for (const [i, { vector, encoding }] of encoded.entries()) {
    expect(vector).toHaveLength(PER_CHUNK * hidden);
    const windows = await windowsOf(CHUNKS[i]!.text);
    const mean = windows[0]!.map((_, at) => windows.reduce((sum, window) => sum + window[at]!, 0) / PER_CHUNK);
    expect(largestDifference(encoding!, mean)).toBeLessThanOrEqual(1e-5);
    for (const [w, window] of windows.entries()) {
      const own = vector.subarray(w * hidden, (w + 1) * hidden);
      expect(largestDifference(own, await project(window))).toBeLessThanOrEqual(1e-4);
    }
  }
});

test('a file is the projected mean of its chunks, scaled as they are', async () => {
  const encoded = await encoder.encode(CHUNKS);
  const mean = encoded[0]!.encoding!.map(
    (_, at) => encoded.reduce((sum, { encoding }) => sum + encoding![at]!, 0) / encoded.length,
  );
  const [vector] = await encoder.project([mean]);
  const length = Math.hypot(...mean);
  expect(largestDifference(vector!, await project(mean.map((value) => value / length)))).toBeLessThanOrEqual(1e-4);
  expect(await encoder.project([])).toEqual([]);
});

test('dense retrieval compares one embedding per chunk, whatever the number of its soft tokens', async () => {
  const queries = await loadQueryEncoder(bundle, OPTIONS);
  const { embedding } = (await encoder.encode(CHUNKS))[0]!;
  expect(embedding).toHaveLength(spec.dim);
  expect(largestDifference(embedding!, await queries.embed(CHUNKS[0]!.text))).toBeLessThanOrEqual(1e-6);
  queries.dispose();
});

test('vectors scattered over the prompt give the logits of the same embeddings as inputs', async () => {
  const { session, spec: llm } = await loadDecoder(LLM, parent, 'decoder');
  const vectors = (await encoder.encode(CHUNKS)).map(({ vector }) => vector);
  const files = await encoder.project((await encoder.encode(CHUNKS)).map(({ encoding }) => encoding!));
  const builder = new PromptBuilder(tokenizer, choosePromptFormat(tokenizer, undefined, []));
  const context = { kind: 'soft', vectors, perChunk: PER_CHUNK, files: files.slice(0, 1) } as const;
  const prompt = 'def g(y):';
  const { ids, soft } = atOnce(builder.build({ prompt, context, capacity: 128, maxTokens: 1 }));
  const count = 1 + CHUNKS.length * PER_CHUNK;
  expect([...soft.positions]).toEqual(Array.from({ length: count }, (_, i) => i));
  const scattered = { positions: [...soft.positions], vectors: soft.vectors };
  const logits = await new DecoderRun(session, llm).step({ ids: [...ids], soft: scattered });
  // All embeddings as inputs: those of the tokens are rows of the model's own table.
  await using checkpoint = await Checkpoint.open(LLM);
  const table = await checkpoint.read('model.embed_tokens.weight');
  const rows = [...ids].slice(count).map((id) => table.subarray(id * hidden, (id + 1) * hidden));
  const inputs = Float32Array.from([...files.slice(0, 1), ...vectors, ...rows].flatMap((row) => [...row]));
  const everywhere = { positions: [...ids].map((_, i) => i), vectors: inputs };
  const want = await new DecoderRun(session, llm).step({ ids: [...ids].map(() => 0), soft: everywhere });
  expect(largestDifference(logits, want)).toBe(0);
  session.dispose();
});
