/** Compares encoders and the projector with PyTorch. */
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
