/** Compares the decoder graph with PyTorch: logits, greedy continuations, soft tokens, chunks, keys and values. */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import type { OrtSession } from '../../../services/lib/engine/ort.ts';
import { PRECISIONS } from '../../../services/lib/model/bundle/choices.ts';
import { slowOnCuda, weightFormats } from '../../../services/lib/model/bundle/weight-formats.ts';
import { Checkpoint } from '../../../services/lib/model/checkpoint/checkpoint.ts';
import { type DecoderSpec, readSpec } from '../../../services/lib/model/checkpoint/spec.ts';
import { publishedSpec, SHAPES, type ShapeName } from '../../../services/lib/model/checkpoint/synth.ts';
import { buildDecoder } from '../../../services/lib/model/graph/decoder.ts';
import type { TableFormat } from '../../../services/lib/model/graph/linear.ts';
import {
  DecoderRun,
  type Expected,
  GOLDENS,
  ids64,
  largestDifference,
  loadDecoder,
  places,
  readExpected,
  readJsonFile,
  temporaryFolder,
} from '../../support/models.ts';

interface Golden {
  readonly input_ids: number[];
  readonly greedy: number[];
  readonly greedy_soft_prefix: number[];
  readonly soft: number;
}
const LOGIT_TOLERANCE = 2e-3;
const zeros = (n: number) => new Array<number>(n).fill(0);
const range = (start: number, end: number) => Array.from({ length: end - start }, (_, i) => start + i);

// Reshapes: of the final states, of rows of a table in fewer bits, and two each for the norms of queries and of keys.
test.each<[string, TableFormat, number, number]>([
  ['qwen2-tied', 'fp32', 1, 0],
  ['qwen2-untied', { bits: 4, block: 32 }, 2, 0],
  ['qwen3-embedding', { bits: 8, block: 32 }, 2, 4],
])(
  'no node of the graph of %s computes a shape, which a GPU would leave to the CPU',
  async (name, format, once, each) => {
    const dir = join(GOLDENS, name);
    await using checkpoint = await Checkpoint.open(dir);
    const spec = (await readSpec(dir)) as DecoderSpec;
    const graph = buildDecoder(spec, checkpoint, { layers: format, vocabulary: format, maxPositions: 64 });
    const constants = new Set<string>(graph.constants.map((constant) => constant.name));
    for (const { operator, inputs } of graph.nodes) {
      expect(['Shape', 'Range', 'Concat', 'Unsqueeze', 'Squeeze', 'Slice']).not.toContain(operator);
      if (operator === 'Reshape') expect(constants).toContain(inputs[1]);
    }
    const reshapes = graph.nodes.filter(({ operator }) => operator === 'Reshape');
    expect(reshapes).toHaveLength(once + each * spec.layers);
  },
);

test.each(['int8-fp16', 'int4-fp16'] as const)(
  'the matrices of %s are such as the CUDA kernels for many rows take: blocks of 32, no zero points, no bias within',
  async (precision) => {
    const dir = join(GOLDENS, 'qwen2-tied');
    await using checkpoint = await Checkpoint.open(dir);
    const spec = (await readSpec(dir)) as DecoderSpec;
    const formats = weightFormats(precision, spec.layers);
    const graph = buildDecoder(spec, checkpoint, { ...formats, maxPositions: 64 });
    const products = graph.nodes.filter(({ operator }) => operator === 'MatMulNBits');
    expect(products.length).toBeGreaterThan(4 * spec.layers);
    for (const { inputs, attributes } of products) {
      expect(inputs).toHaveLength(3);
      expect(attributes).toMatchObject({ block_size: 32 });
    }
  },
);

describe('what CUDA multiplies slowly', () => {
  test('matrices of the published shapes are all such as its fast kernels take', () => {
    for (const shape of Object.keys(SHAPES) as ShapeName[]) {
      for (const precision of PRECISIONS) expect(slowOnCuda(publishedSpec(shape), precision), shape).toBeUndefined();
    }
  });

  test.each([
    ['int4-fp16', 64],
    ['int8-fp16', 32],
  ] as const)(
    'those of the graph of a small model in %s are named at export, and no others',
    async (precision, multiple) => {
      const dir = join(GOLDENS, 'qwen2-tied');
      await using checkpoint = await Checkpoint.open(dir);
      const spec = (await readSpec(dir)) as DecoderSpec;
      const formats = weightFormats(precision, spec.layers);
      const graph = buildDecoder(spec, checkpoint, { ...formats, maxPositions: 64 });
      const products = graph.nodes.filter(({ operator }) => operator === 'MatMulNBits');
      const outputs = new Set(products.map(({ attributes }) => attributes['N'] as number));
      expect(outputs.size).toBeGreaterThan(2);
      const said = slowOnCuda(spec, precision) ?? '';
      for (const count of outputs) {
        expect(said.includes(`(${count} outputs)`), `${count}`).toBe(count % multiple !== 0);
      }
    },
  );

  test('blocks of another size are named, and precisions that CUDA does not compute say nothing', async () => {
    const spec = publishedSpec('qwen2.5-coder-0.5b');
    expect(slowOnCuda(spec, 'int4-fp16', 64)).toMatch(/^--block 64: .*blocks of 32 only/);
    expect(slowOnCuda({ ...spec, vocab: 501 }, 'int4')).toBeUndefined();
    expect(slowOnCuda({ ...spec, vocab: 501 }, 'fp16')).toBeUndefined();
    expect(slowOnCuda({ ...spec, vocab: 501 }, 'int8-fp16')).toMatch(/the output projection \(501 outputs\)/);
  });
});

describe.each(['qwen2-tied', 'qwen2-untied', 'llama'])('golden %s', async (name) => {
  const dir = join(GOLDENS, name);
  const parent = await temporaryFolder();
  let session: OrtSession;
  let spec: DecoderSpec;
  let golden: Golden;
  let expected: Expected;
  let soft: Float32Array;
  const run = () => new DecoderRun(session, spec);

  beforeAll(async () => {
    ({ session, spec } = await loadDecoder(dir, parent, 'decoder'));
    golden = await readJsonFile(join(dir, 'expected.json'));
    expected = await readExpected(join(dir, 'expected.safetensors'));
    soft = expected.float32('soft_tokens');
    return () => session.dispose();
  });

  test('the logits of every position are those of the reference', async () => {
    const logits = await run().step({ ids: golden.input_ids });
    expect(largestDifference(logits, expected.float32('logits'))).toBeLessThanOrEqual(LOGIT_TOLERANCE);
  });

  test('greedy continuation with keys and values kept in place is that of the reference', async () => {
    expect(await run().greedy({ ids: golden.input_ids }, 24)).toEqual(golden.greedy);
  });

  test('the keys and values of the last layer are those of the reference', async () => {
    const decoder = run();
    await decoder.step({ ids: golden.input_ids });
    for (const [part, cache] of [
      ['key', decoder.cache.at(-2)!],
      ['value', decoder.cache.at(-1)!],
    ] as const) {
      const want = expected.float32(`last_layer_${part}`);
      const width = golden.input_ids.length * spec.headDim;
      for (let head = 0; head < spec.kvHeads; head++) {
        const start = head * decoder.capacity * spec.headDim;
        const found = cache.subarray(start, start + width);
        expect(largestDifference(found, want.subarray(head * width, (head + 1) * width))).toBeLessThanOrEqual(1e-4);
      }
    }
  });

  test('soft tokens before the prompt give the logits of the reference', async () => {
    const first = {
      ids: [...zeros(golden.soft), ...golden.input_ids],
      soft: { positions: range(0, golden.soft), vectors: soft },
    };
    const logits = await run().step(first);
    const want = expected.float32('logits_soft_prefix');
    expect(largestDifference(logits, want)).toBeLessThanOrEqual(LOGIT_TOLERANCE);
    expect(await run().greedy(first, 24)).toEqual(golden.greedy_soft_prefix);
  });

  test('soft tokens inside the prompt give the logits of the reference', async () => {
    const ids = [...golden.input_ids.slice(0, 5), ...zeros(3), ...golden.input_ids.slice(5)];
    const vectors = soft.subarray(0, 3 * spec.hidden);
    const logits = await run().step({ ids, soft: { positions: [5, 6, 7], vectors } });
    const want = expected.float32('logits_soft_middle');
    expect(largestDifference(logits, want)).toBeLessThanOrEqual(LOGIT_TOLERANCE);
  });

  test.each([1, 2, 7, 16, 100])('a prompt in chunks of %i gives the logits of the whole', async (size) => {
    const decoder = run();
    const want = expected.float32('logits');
    const { input_ids: ids } = golden;
    for (let start = 0; start < ids.length; start += size) {
      const end = Math.min(ids.length, start + size);
      const logits = await decoder.step({ ids: ids.slice(start, end) });
      const rows = want.subarray(start * spec.vocab, end * spec.vocab);
      expect(largestDifference(logits, rows)).toBeLessThanOrEqual(LOGIT_TOLERANCE);
    }
  });

  test('soft tokens that a chunk boundary splits give the same logits', async () => {
    const decoder = run();
    const ids = [...zeros(golden.soft), ...golden.input_ids];
    const want = expected.float32('logits_soft_prefix');
    for (const [start, end] of [
      [0, 4],
      [4, 13],
      [13, ids.length],
    ] as const) {
      const positions = range(start, Math.max(start, Math.min(end, golden.soft))).map((at) => at - start);
      const vectors = soft.subarray(start * spec.hidden, (start + positions.length) * spec.hidden);
      const logits = await decoder.step({ ids: ids.slice(start, end), soft: { positions, vectors } });
      const rows = want.subarray(start * spec.vocab, end * spec.vocab);
      expect(largestDifference(logits, rows)).toBeLessThanOrEqual(LOGIT_TOLERANCE);
    }
  });

  test('logits can be computed for some positions only, or for none', async () => {
    const want = expected.float32('logits');
    const decoder = run();
    const logits = await decoder.step({ ids: golden.input_ids.slice(0, 10), rows: [9, 3] });
    for (const [i, row] of [9, 3].entries()) {
      const found = logits.subarray(i * spec.vocab, (i + 1) * spec.vocab);
      const rowWant = want.subarray(row * spec.vocab, (row + 1) * spec.vocab);
      expect(largestDifference(found, rowWant)).toBeLessThanOrEqual(LOGIT_TOLERANCE);
    }
    // A chunk without logits still leaves its keys and values.
    expect((await decoder.step({ ids: golden.input_ids.slice(10, 20), rows: [] })).length).toBe(0);
    const rest = await decoder.step({ ids: golden.input_ids.slice(20) });
    expect(largestDifference(rest, want.subarray(20 * spec.vocab))).toBeLessThanOrEqual(LOGIT_TOLERANCE);
  });

  test('a right-padded batch with a soft token in its second sequence gives the logits of each sequence alone', async () => {
    const { hidden, kvHeads, headDim, layers, vocab } = spec;
    const rows = [golden.input_ids.slice(0, 6), [0, ...golden.input_ids.slice(0, 3)]];
    const empty = { type: 'float32' as const, dims: [2, kvHeads, 0, headDim], data: new Float32Array(0) };
    const past = range(0, layers).flatMap((i) => [
      [`past.${i}.key`, empty],
      [`past.${i}.value`, empty],
    ]);
    const outputs = await session.run(
      {
        input_ids: ids64([2, 6], [...rows[0]!, ...rows[1]!, 0, 0]),
        soft_tokens: { type: 'float32', dims: [1, hidden], data: soft.slice(0, hidden) },
        soft_positions: places(1, [0]),
        logit_rows: ids64([2], [3, 5]),
        seqlens_k: { type: 'int32', dims: [2], data: Int32Array.of(5, 3) },
        total_sequence_length: { type: 'int32', dims: [], data: Int32Array.of(6) },
        ...Object.fromEntries(past),
      },
      ['logits'],
    );
    expect(outputs.logits!.dims).toEqual([4, vocab]);
    const logits = outputs.logits!.data as Float32Array;
    const first = await run().step({ ids: rows[0]!, rows: [3, 5] });
    const alone = { ids: rows[1]!, soft: { positions: [0], vectors: soft.subarray(0, hidden) }, rows: [3] };
    expect(largestDifference(logits.subarray(0, 2 * vocab), first)).toBeLessThanOrEqual(1e-4);
    expect(largestDifference(logits.subarray(2 * vocab, 3 * vocab), await run().step(alone))).toBeLessThanOrEqual(1e-4);
  });
});
