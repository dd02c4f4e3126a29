/** Compares encoders and the projector with PyTorch, and the windows of encoders with a plain computation. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { OrtSession } from '../../../services/lib/engine/ort.ts';
import { Checkpoint } from '../../../services/lib/model/checkpoint/checkpoint.ts';
import { readSpec } from '../../../services/lib/model/checkpoint/spec.ts';
import { buildEncoder } from '../../../services/lib/model/graph/encoder.ts';
import {
  assertProjectorFits,
  buildProjector,
  projectorParameters,
  readProjectorSpec,
} from '../../../services/lib/model/graph/projector.ts';
import {
  GOLDENS,
  ids64,
  inMemory,
  largestDifference,
  loadGraph,
  readExpected,
  readJsonFile,
  temporaryFolder,
} from '../../support/models.ts';

async function embed(session: OrtSession, rows: readonly (readonly number[])[], pad: number, width?: number) {
  const sequence = width ?? Math.max(...rows.map((row) => row.length));
  const padded = rows.flatMap((row) => [...row, ...new Array<number>(sequence - row.length).fill(pad)]);
  const lengths = Int32Array.from(rows, (row) => row.length);
  const { embeddings } = await session.run({
    input_ids: ids64([rows.length, sequence], padded),
    lengths: { type: 'int32', dims: [rows.length], data: lengths },
  });
  return embeddings!.data as Float32Array;
}

describe.each([
  { name: 'qwen3-embedding', pooling: 'last', normalize: true },
  { name: 'unixcoder', pooling: 'mean', normalize: false },
  { name: 'bert', pooling: 'mean', normalize: false },
  { name: 'bert', pooling: 'cls', normalize: false },
] as const)('golden $name with pooling $pooling', async ({ name, pooling, normalize }) => {
  const parent = await temporaryFolder();
  const dir = join(GOLDENS, name);
  const spec = await readSpec(dir);
  const { lengths } = await readJsonFile<{ lengths: number[] }>(join(dir, 'expected.json'));
  const expected = await readExpected(join(dir, 'expected.safetensors'));
  const ids = expected.int64('input_ids');
  const want = expected.float32(pooling === 'cls' ? 'cls' : 'embeddings');
  const rows = lengths.map((length, i) => ids.slice((i * ids.length) / lengths.length).slice(0, length));
  const load = async (as: string, scaled: boolean = normalize) => {
    await using checkpoint = await Checkpoint.open(dir);
    const format = { weights: 'fp32' as const, pooling, normalize: scaled, maxTokens: 64 };
    return await loadGraph(buildEncoder(spec, checkpoint, format), parent, as);
  };

  test('the embeddings of a padded batch are those of the reference, whatever the padding', async () => {
    const session = await load('batch');
    for (const pad of [0, 1, spec.vocab - 1]) {
      expect(largestDifference(await embed(session, rows, pad), want)).toBeLessThanOrEqual(1e-4);
    }
    session.dispose();
  });

  test('a row alone, and a row padded further than any is long, have the same embeddings', async () => {
    const session = await load('alone');
    for (const [i, row] of rows.entries()) {
      const one = want.subarray(i * spec.hidden, (i + 1) * spec.hidden);
      expect(largestDifference(await embed(session, [row], 1), one)).toBeLessThanOrEqual(1e-4);
      expect(largestDifference(await embed(session, [row], 1, 50), one)).toBeLessThanOrEqual(1e-4);
    }
    session.dispose();
  });

  test('normalised embeddings have length 1 and the same direction', async () => {
    const session = await load('normalised', true);
    const found = await embed(session, rows, 1);
    for (let i = 0; i < rows.length; i++) {
      const reference = want.subarray(i * spec.hidden, (i + 1) * spec.hidden);
      const length = Math.hypot(...reference);
      const unit = reference.map((value) => value / length);
      expect(largestDifference(found.subarray(i * spec.hidden, (i + 1) * spec.hidden), unit)).toBeLessThanOrEqual(1e-4);
    }
    session.dispose();
  });
});

/** The windows of one row, by the rule of graph/encoder.ts, one value after the other. */
function windowsOf(states: readonly Float32Array[], count: number, normalize: boolean): number[] {
  const windows: number[] = [];
  for (let w = 0; w < count; w++) {
    const begin = Math.floor((w * states.length) / count);
    const end = Math.max(begin + 1, Math.floor(((w + 1) * states.length) / count));
    const within = states.slice(begin, end);
    const mean = Array.from(states[0]!, (_, i) => within.reduce((sum, state) => sum + state[i]!, 0) / within.length);
    const length = normalize ? Math.hypot(...mean) : 1;
    windows.push(...mean.map((value) => value / length));
  }
  return windows;
}

describe('the windows of a chunk', async () => {
  const parent = await temporaryFolder();
  const open = async (golden: string, as: string, format: Partial<Parameters<typeof buildEncoder>[2]>) => {
    const dir = join(GOLDENS, golden);
    const spec = await readSpec(dir);
    await using checkpoint = await Checkpoint.open(dir);
    const whole = { weights: 'fp32', pooling: 'mean', normalize: false, maxTokens: 64, ...format } as const;
    return { session: await loadGraph(buildEncoder(spec, checkpoint, whole), parent, as), dim: spec.hidden };
  };
  const run = async (session: OrtSession, rows: readonly (readonly number[])[], output: string) => {
    const sequence = Math.max(...rows.map((row) => row.length));
    const padded = rows.flatMap((row) => [...row, ...new Array<number>(sequence - row.length).fill(3)]);
    const lengths = Int32Array.from(rows, (row) => row.length);
    const fed = {
      input_ids: ids64([rows.length, sequence], padded),
      lengths: { type: 'int32' as const, dims: [rows.length], data: lengths },
    };
    return (await session.run(fed, [output]))[output]!;
  };
  // Longer than the windows, not a multiple of them, exactly as many, fewer, and a single token.
  const rows = [19, 13, 8, 5, 3, 2, 1].map((length, r) =>
    Array.from({ length }, (_, i) => 4 + ((31 * r + 7 * i) % 90)),
  );

  test.each([
    [2, false],
    [4, true],
    [8, false],
  ] as const)('%i windows are the means of runs of the last hidden states, scaled: %s', async (count, normalize) => {
    const name = `windows-${count}`;
    const { session, dim } = await open('qwen3-embedding', name, { pooling: 'last', normalize, softPerChunk: count });
    const last = await open('qwen3-embedding', `${name}-last`, { pooling: 'last' });
    const found = await run(session, rows, 'windows');
    expect(found.dims).toEqual([rows.length, count, dim]);
    // Attention is causal, so the state of a token is what the last token of a text that ends there is pooled to.
    for (const [r, row] of rows.entries()) {
      const prefixes = row.map((_, i) => row.slice(0, i + 1));
      const pooled = (await run(last.session, prefixes, 'embeddings')).data as Float32Array;
      const states = prefixes.map((_, i) => pooled.slice(i * dim, (i + 1) * dim));
      const own = (found.data as Float32Array).subarray(r * count * dim, (r + 1) * count * dim);
      expect(largestDifference(own, windowsOf(states, count, normalize))).toBeLessThanOrEqual(1e-4);
    }
    session.dispose();
    last.session.dispose();
  });

  test.each(['unixcoder', 'bert'])('the windows of %s, weighted by their tokens, have its mean', async (golden) => {
    const { session, dim } = await open(golden, `windows-${golden}`, { softPerChunk: 4 });
    const long = rows.filter(({ length }) => length >= 4);
    const windows = (await run(session, long, 'windows')).data as Float32Array;
    const means = (await run(session, long, 'embeddings')).data as Float32Array;
    for (const [r, { length: n }] of long.entries()) {
      const sum = new Float64Array(dim);
      for (let w = 0; w < 4; w++) {
        const tokens = Math.floor(((w + 1) * n) / 4) - Math.floor((w * n) / 4);
        for (let i = 0; i < dim; i++) sum[i]! += (tokens * windows[(4 * r + w) * dim + i]!) / n;
      }
      expect(largestDifference(sum, means.subarray(r * dim, (r + 1) * dim))).toBeLessThanOrEqual(1e-5);
    }
    session.dispose();
  });

  test('other texts in the batch and their padding do not change windows', async () => {
    const { session, dim } = await open('unixcoder', 'windows-alone', { softPerChunk: 8, normalize: true });
    const together = (await run(session, rows, 'windows')).data as Float32Array;
    for (const [r, row] of rows.entries()) {
      const alone = (await run(session, [row], 'windows')).data as Float32Array;
      const own = together.subarray(r * 8 * dim, (r + 1) * 8 * dim);
      expect(largestDifference(alone, own)).toBeLessThanOrEqual(1e-5);
    }
    session.dispose();
  });
});

describe('the projector', async () => {
  const parent = await temporaryFolder();

  test.each(['projector-mlp2', 'projector-mlp3'])('the soft tokens of %s are those of the reference', async (name) => {
    const dir = join(GOLDENS, name);
    const { dims } = await readJsonFile<{ dims: number[] }>(join(dir, 'expected.json'));
    const expected = await readExpected(join(dir, 'expected.safetensors'));
    await using checkpoint = await Checkpoint.open(dir);
    expect(readProjectorSpec(checkpoint).widths).toEqual(dims);
    const session = await loadGraph(buildProjector(checkpoint), parent, name);
    const { soft_tokens } = await session.run({
      embeddings: { type: 'float32', dims: [7, dims[0]!], data: expected.float32('x') },
    });
    expect(soft_tokens!.dims).toEqual([7, dims.at(-1)]);
    expect(largestDifference(soft_tokens!.data as Float32Array, expected.float32('y'))).toBeLessThanOrEqual(1e-5);
    session.dispose();
  });

  // The numbers are from table 3 of the paper.
  test.each([
    [3_938_304, [1024, 1536, 1536]],
    [17_321_472, [1024, 3072, 3072, 1536]],
    [3_545_088, [768, 1536, 1536]],
    [16_535_040, [768, 3072, 3072, 1536]],
  ])('a projector has %i parameters if its widths are %j', (parameters, widths) => {
    expect(projectorParameters({ widths })).toBe(parameters);
  });

  const authors = (prefix: string) =>
    inMemory({
      [`${prefix}linear_1.weight`]: [16, 8],
      [`${prefix}linear_1.bias`]: [16],
      [`${prefix}ln_1.weight`]: [16],
      [`${prefix}ln_1.bias`]: [16],
      [`${prefix}linear_2.weight`]: [16, 16],
      [`${prefix}linear_2.bias`]: [16],
    });

  test.each(['', 'multi_modal_projector.', 'model.multi_modal_projector.'])(
    "a projector with the authors' names after '%s' is read",
    (prefix) => {
      expect(readProjectorSpec(authors(prefix)).widths).toEqual([8, 16, 16]);
      expect(buildProjector(authors(prefix)).outputs).toEqual([
        { name: 'soft_tokens', type: 'float32', dims: ['n', 16] },
      ]);
    },
  );

  test.each(['', 'layers.', 'mlp.', 'net.', 'module.net.'])(
    "a projector with torch.nn.Sequential's names after '%s' is read",
    (list) => {
      const source = inMemory({
        [`${list}0.weight`]: [16, 8],
        [`${list}0.bias`]: [16],
        [`${list}2.weight`]: [16],
        [`${list}2.bias`]: [16],
        [`${list}3.weight`]: [32, 16],
        [`${list}3.bias`]: [32],
      });
      expect(readProjectorSpec(source).widths).toEqual([8, 16, 32]);
      expect(buildProjector(source).outputs).toEqual([{ name: 'soft_tokens', type: 'float32', dims: ['n', 32] }]);
    },
  );

  test('a projector that does not fit is refused with the shapes of both sides', () => {
    const source = authors('');
    const spec = readProjectorSpec(source);
    expect(() => assertProjectorFits(source, spec, 8, 16)).not.toThrow();
    expect(() => assertProjectorFits(source, spec, 768, 1536)).toThrow(
      expect.objectContaining({
        code: 'projector_invalid',
        message: expect.stringMatching(/\[n, 8\] to \[n, 16\].*\[n, 768\].*\[n, 1536\]/),
      }),
    );
  });

  test.each([
    ['a checkpoint without projector', { weight: [3, 3] }, 'holds no projector'],
    ['a projector of one layer', { 'linear_1.weight': [3, 3] }, 'has 1 linear layers'],
    [
      'a projector whose layers do not fit together',
      { 'linear_1.weight': [4, 3], 'linear_2.weight': [5, 6] },
      'gives 4 values',
    ],
    ['a weight that is not a matrix', { 'linear_1.weight': [4] }, 'not a matrix'],
  ])('%s is refused', (_, shapes, message) => {
    expect(() => readProjectorSpec(inMemory(shapes))).toThrow(
      expect.objectContaining({ code: 'projector_invalid', message: expect.stringContaining(message) }),
    );
  });
});
