/** Checkpoints on disk are read exactly, or refused with the name of the file and the tensor. */
import { cp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Checkpoint, expectTensor } from '../../../services/lib/model/checkpoint/checkpoint.ts';
import { parseHeader, SafetensorsFile } from '../../../services/lib/model/checkpoint/safetensors.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { GOLDENS, inMemory, safetensorsBytes, temporaryFolder } from '../../support/models.ts';

const checkpointInvalid = (...parts: string[]) =>
  expect.objectContaining({
    code: 'checkpoint_invalid',
    message: expect.stringMatching(new RegExp(parts.map((part) => part.replace(/[[\]()."]/g, '\\$&')).join('.*'))),
  });
const f32 = (shape: number[], begin: number, end: number) => ({ dtype: 'F32', shape, data_offsets: [begin, end] });

describe('a safetensors file', async () => {
  const dir = await temporaryFolder();
  const write = async (name: string, bytes: Uint8Array) => {
    const path = join(dir, name);
    await writeFile(path, bytes);
    return path;
  };

  test('values of F32, F16 and BF16 are read exactly', async () => {
    const bytes = safetensorsBytes(
      {
        __metadata__: { format: 'pt' },
        half: { dtype: 'F16', shape: [2, 4], data_offsets: [12, 28] },
        float: f32([3], 0, 12),
        brain: { dtype: 'BF16', shape: [4], data_offsets: [28, 36] },
        empty: f32([0, 5], 36, 36),
      },
      36,
    );
    const data = new DataView(bytes.buffer, bytes.length - 36);
    for (const [i, value] of [1.5, -3.25, 1e-40].entries()) data.setFloat32(4 * i, value, true);
    const halves = [0x3c00, 0xc000, 0x0001, 0x7bff, 0x8000, 0x7c00, 0xfc00, 0x03ff];
    for (const [i, bits] of halves.entries()) data.setUint16(12 + 2 * i, bits, true);
    for (const [i, bits] of [0x3f80, 0xc049, 0x0000, 0x7f80].entries()) data.setUint16(28 + 2 * i, bits, true);
    const file = await SafetensorsFile.open(await write('values.safetensors', bytes));
    expect(await file.read('float')).toEqual(Float32Array.of(1.5, -3.25, 1e-40));
    const smallest = 2 ** -24;
    expect(await file.read('half')).toEqual(
      Float32Array.of(1, -2, smallest, 65504, -0, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1023 * smallest),
    );
    expect(await file.read('brain')).toEqual(Float32Array.of(1, -3.140625, 0, Number.POSITIVE_INFINITY));
    expect(await file.read('empty')).toEqual(new Float32Array(0));
    await expect(file.read('absent')).rejects.toThrow(checkpointInvalid('values.safetensors', 'absent', 'missing'));
    await file.close();
  });

  test('other dtypes are refused when read as weights', async () => {
    const header = { ids: { dtype: 'I64', shape: [1], data_offsets: [0, 8] } };
    const file = await SafetensorsFile.open(await write('ids.safetensors', safetensorsBytes(header, 8)));
    await expect(file.read('ids')).rejects.toThrow(checkpointInvalid('ids.safetensors', 'ids', 'I64'));
    await file.close();
  });

  test.each<[string, Uint8Array, string[]]>([
    ['no bytes', new Uint8Array(0), ['cut short']],
    ['half a length', new Uint8Array(5), ['cut short']],
    ['a header cut short', safetensorsBytes({ a: f32([2], 0, 8) }, 0).subarray(0, 20), ['cut short', 'header']],
    ['data cut short', safetensorsBytes({ a: f32([2], 0, 8) }, 7), ['"a"', '[0, 8)', '7 bytes']],
    ['a huge header', Uint8Array.of(255, 255, 255, 255, 255, 255, 255, 127), ['too large']],
    ['a header that is not JSON', safetensorsBytes('{"a"', 0), ['not JSON']],
    ['a header that is not UTF-8', safetensorsBytes('', 0).fill(0xff, 8), ['not']],
    ['a header that is a list', safetensorsBytes([], 0), ['not an object']],
    ['an overlap', safetensorsBytes({ a: f32([2], 0, 8), b: f32([2], 4, 12) }, 12), ['"b"', 'overlaps']],
    ['a gap', safetensorsBytes({ a: f32([1], 0, 4), b: f32([1], 8, 12) }, 12), ['"b"', 'gap']],
    ['two tensors in one place', safetensorsBytes({ a: f32([1], 0, 4), b: f32([1], 0, 4) }, 4), ['"b"', 'overlaps']],
    ['data of no tensor', safetensorsBytes({ a: f32([1], 0, 4) }, 8), ['4 bytes after']],
    ['offsets reversed', safetensorsBytes({ a: f32([1], 4, 0) }, 4), ['"a"', '[4, 0)']],
    ['a shape that is too large', safetensorsBytes({ a: f32([3], 0, 8) }, 8), ['"a"', '12 bytes', '8']],
    ['a shape beyond any memory', safetensorsBytes({ a: f32([2 ** 52, 2 ** 52], 0, 8) }, 8), ['"a"']],
    ['a negative size', safetensorsBytes({ a: f32([-1, -2], 0, 8) }, 8), ['"a"', 'shape']],
    ['an unknown dtype', safetensorsBytes({ a: { ...f32([2], 0, 8), dtype: 'F7' } }, 8), ['"a"', 'dtype']],
    ['a tensor without offsets', safetensorsBytes({ a: { dtype: 'F32', shape: [0] } }, 0), ['"a"', 'data_offsets']],
    ['a tensor that is a number', safetensorsBytes({ a: 1 }, 0), ['"a"']],
  ])('%s is refused', async (name, bytes, message) => {
    const file = `${name.replaceAll(' ', '-')}.safetensors`;
    await expect(SafetensorsFile.open(await write(file, bytes))).rejects.toThrow(checkpointInvalid(file, ...message));
  });

  test('a folder in place of a safetensors file, or nothing, is refused', async () => {
    await expect(SafetensorsFile.open(join(dir, 'none.safetensors'))).rejects.toThrow(checkpointInvalid('none'));
  });
});

describe('the header parser, on anything', () => {
  /** Headers whose tensors tile the data are valid. All others give a coded error. */
  const parsesOrRefuses = (header: Uint8Array, dataBytes: number) => {
    let tensors: ReturnType<typeof parseHeader>;
    try {
      tensors = parseHeader('fuzz', header, dataBytes);
    } catch (error) {
      expect(error).toBeInstanceOf(ServingError);
      expect((error as ServingError).code).toBe('checkpoint_invalid');
      return;
    }
    const covered = [...tensors.values()].reduce((sum, { begin, end }) => sum + end - begin, 0);
    expect(covered).toBe(dataBytes);
  };

  test('any bytes as a header give tensors or a coded error', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat(1000), parsesOrRefuses));
  });

  test('any JSON as a header gives tensors or a coded error', () => {
    fc.assert(fc.property(fc.json(), fc.nat(1000), (json, dataBytes) => parsesOrRefuses(Buffer.from(json), dataBytes)));
  });

  test('headers that are almost right give tensors or a coded error', () => {
    const size = fc.oneof(fc.nat(40), fc.maxSafeInteger(), fc.double());
    const entry = fc.record({
      dtype: fc.constantFrom('F32', 'F16', 'BF16', 'U8', 'constructor', '__proto__'),
      shape: fc.array(size, { maxLength: 3 }),
      data_offsets: fc.tuple(size, size),
    });
    const name = fc.oneof(fc.string({ maxLength: 3 }), fc.constantFrom('__proto__', '__metadata__', 'toString'));
    fc.assert(
      fc.property(fc.dictionary(name, entry, { maxKeys: 4 }), fc.nat(100), (header, dataBytes) =>
        parsesOrRefuses(Buffer.from(JSON.stringify(header)), dataBytes),
      ),
    );
  });

  test('tensors that tile the data, in any order, are found where they lie', () => {
    const dims = fc.array(fc.integer({ min: 1, max: 4 }), { maxLength: 3 });
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.string(), { maxLength: 6 }),
        fc.array(dims, { minLength: 6, maxLength: 6 }),
        (names, shapes) => {
          let at = 0;
          const entries = names
            .filter((name) => name !== '__metadata__')
            .map((name, i) => {
              const shape = shapes[i]!;
              const begin = at;
              at += 2 * shape.reduce((product, dim) => product * dim, 1);
              return [name, { dtype: 'F16', shape, data_offsets: [begin, at] }] as const;
            });
          const header = Buffer.from(JSON.stringify(Object.fromEntries(entries.toReversed())));
          const tensors = parseHeader('tiled', header, at);
          for (const [name, { shape, data_offsets }] of entries) {
            expect(tensors.get(name)).toEqual({ dtype: 'F16', shape, begin: data_offsets[0], end: data_offsets[1] });
          }
        },
      ),
    );
  });
});

describe('a checkpoint', async () => {
  const dir = await temporaryFolder();
  const sharded = async (name: string) => {
    const copy = join(dir, name);
    await cp(join(GOLDENS, 'qwen2-untied'), copy, { recursive: true });
    return copy;
  };

  test('a checkpoint of shards has the tensors of all shards', async () => {
    const checkpoint = await Checkpoint.open(join(GOLDENS, 'qwen2-untied'));
    expect(checkpoint.shapeOf('lm_head.weight')).toEqual([640, 128]);
    expect(checkpoint.shapeOf('model.norm.weight')).toEqual([128]);
    expect((await checkpoint.read('model.norm.weight')).length).toBe(128);
    await checkpoint.close();
  });

  test('a checkpoint that lacks a shard is refused', async () => {
    const copy = await sharded('absent');
    await rm(join(copy, 'model-00003-of-00010.safetensors'));
    await expect(Checkpoint.open(copy)).rejects.toThrow(checkpointInvalid('model-00003-of-00010.safetensors'));
  });

  test('a checkpoint whose index names a tensor that its shard lacks is refused', async () => {
    const copy = await sharded('wrong-index');
    const path = join(copy, 'model.safetensors.index.json');
    const index = await readFile(path, 'utf8');
    await writeFile(path, index.replace('"lm_head.weight"', '"other.weight"'));
    await expect(Checkpoint.open(copy)).rejects.toThrow(
      checkpointInvalid('index.json', '"other.weight"', 'model-00009-of-00010.safetensors'),
    );
  });

  test.each(['{', '{"weight_map": 3}', '{"weight_map": {"a": "../outside.safetensors"}}'])(
    'with the index %s is refused',
    async (index) => {
      const copy = await sharded(`index-${index.length}`);
      await writeFile(join(copy, 'model.safetensors.index.json'), index);
      await expect(Checkpoint.open(copy)).rejects.toThrow(checkpointInvalid('model.safetensors.index.json'));
    },
  );

  test('a checkpoint of another format is refused with a remedy', async () => {
    await writeFile(join(dir, 'projector.npz'), '');
    await expect(Checkpoint.open(join(dir, 'projector.npz'))).rejects.toMatchObject({
      message: expect.stringMatching(/projector\.npz: is neither/),
      remedy: expect.stringMatching(/^Convert it to safetensors/),
    });
    await expect(Checkpoint.open(join(dir, 'nowhere'))).rejects.toThrow(checkpointInvalid('nowhere', 'not exist'));
    await expect(Checkpoint.open(dir)).rejects.toMatchObject({
      message: expect.stringMatching(/model\.safetensors/),
      remedy: expect.stringMatching(/convert/i),
    });
  });

  test('a missing tensor and one of another shape are refused by name, with both shapes', () => {
    const source = inMemory({ 'norm.weight': [64] });
    expect(() => expectTensor(source, 'norm.weight', [64])).not.toThrow();
    expect(() => expectTensor(source, 'norm.bias', [64])).toThrow(
      checkpointInvalid('in-memory', 'norm.bias', 'missing'),
    );
    expect(() => expectTensor(source, 'norm.weight', [64, 1])).toThrow(
      checkpointInvalid('"norm.weight"', '[64]', '[64,1]'),
    );
  });
});
