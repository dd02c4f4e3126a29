/** Files of torch.save are read exactly, or refused; nothing in them is executed. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { strToU8, zipSync } from 'fflate';
import { describe, expect, test } from 'vitest';
import { Checkpoint } from '../../../services/lib/model/checkpoint/checkpoint.ts';
import { readPickledTensors } from '../../../services/lib/model/checkpoint/pickle.ts';
import { TorchFile } from '../../../services/lib/model/checkpoint/torch-file.ts';
import { readProjectorSpec } from '../../../services/lib/model/graph/projector.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { GOLDENS, temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();
const GOLDEN = join(GOLDENS, 'projector-pth/projector.pth');
const refused = (what: string) => ({ code: 'checkpoint_invalid', message: expect.stringMatching(what) });

test('a projector is read with its values in three types of numbers, as a checkpoint that export takes', async () => {
  await using checkpoint = await Checkpoint.open(GOLDEN);
  expect(readProjectorSpec(checkpoint)).toEqual({ widths: [4, 3, 3] });
  const read = async (name: string) => [...(await checkpoint.read(`projector.${name}`))];
  expect(checkpoint.shapeOf('projector.linear_1.weight')).toEqual([3, 4]);
  expect(await read('linear_1.weight')).toEqual(Array.from({ length: 12 }, (_, i) => 0.5 * i - 2));
  expect(await read('linear_1.bias')).toEqual([1.5, -2.25, 0]);
  expect(await read('ln_1.weight')).toEqual([1, 1, 1]);
  expect(await read('ln_1.bias')).toEqual([0, 0, 0]); // the second half of a storage
  expect(await read('linear_2.weight')).toEqual(Array.from({ length: 9 }, (_, i) => 0.5 * i));
  expect(await read('linear_2.bias')).toEqual([3, 4, 5]);
  expect(checkpoint.shapeOf('projector.epoch')).toBeUndefined();
  await expect(checkpoint.read('absent')).rejects.toMatchObject(refused('"absent" is missing'));
});

/** A pickle of protocol 2 with these operations. */
const pickle = (...parts: (string | number[])[]) =>
  Uint8Array.from([
    0x80,
    2,
    ...parts.flatMap((part) => (typeof part === 'string' ? [...Buffer.from(part)] : part)),
    0x2e,
  ]);
const text = (value: string) => [0x58, value.length, 0, 0, 0, ...Buffer.from(value)];

describe('a pickle', () => {
  test.each<[what: string, bytes: Uint8Array, message: string]>([
    ['that asks for a function of the system', pickle('cos\nsystem\n', '(', text('true'), 't', 'R'), 'os\\.system'],
    ['that asks for one by names on the stack', pickle(text('builtins'), text('eval'), [0x93]), 'builtins\\.eval'],
    ['that makes an object', pickle('(', 'itorch\nTensor\n'), 'operation 0x69'],
    ['of another type of numbers', pickle('ctorch\nDoubleStorage\n'), 'DoubleStorage.*safetensors'],
    ['that calls what is not a function', pickle('K', [1], ')', 'R'), 'not a function'],
    ['with a tensor in an unknown form', pickle('ctorch._utils\n_rebuild_tensor_v2\n', ')', 'R'), 'unknown form'],
    ['that recalls what it has not kept', pickle('h', [7]), 'recalls 7'],
    ['that is cut short', pickle('X', [200, 0, 0, 0]), 'cut short'],
    ['that is empty', new Uint8Array(0), 'cut short'],
  ])('%s is refused', (_, bytes, message) => {
    expect(() => readPickledTensors('file.pth', bytes)).toThrow(
      expect.objectContaining(refused(`file.pth.*${message}`)),
    );
  });

  test('a dictionary that contains itself is read', () => {
    expect(readPickledTensors('file.pth', pickle('}', 'q', [0], text('a'), 'h', [0], 's')).size).toBe(0);
  });

  test('any operations give tensors or a coded error', () => {
    const code = fc.constantFrom(
      ...Buffer.from('(0KMJGXqrhjtleascubQRN}]).'),
      0x80,
      0x85,
      0x86,
      0x87,
      0x88,
      0x8a,
      0x8c,
      0x93,
      0x94,
    );
    const pieces = fc.oneof(
      { weight: 4, arbitrary: code.map((value) => [value]) },
      fc.uint8Array({ maxLength: 3 }).map((bytes) => [...bytes]),
      fc
        .constantFrom('cos\nsystem\n', 'ctorch\nFloatStorage\n', 'ctorch._utils\n_rebuild_tensor_v2\n')
        .map((line) => [...Buffer.from(line)]),
    );
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 40 }), (parts) => {
        try {
          readPickledTensors('file.pth', Uint8Array.from(parts.flat()));
        } catch (error) {
          expect(error).toBeInstanceOf(ServingError);
          expect(error).toMatchObject({ code: 'checkpoint_invalid' });
        }
      }),
      { numRuns: 2000 },
    );
  });
});

describe('an archive', () => {
  const write = async (name: string, bytes: Uint8Array) => {
    const path = join(dir, name);
    await writeFile(path, bytes);
    return path;
  };
  const empty = pickle('}');

  test.each<[what: string, bytes: Uint8Array, message: string]>([
    ['of no bytes', new Uint8Array(0), 'not a zip archive'],
    ['of the form before 1.6', strToU8('\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.'), 'not a zip archive.*1\\.6'],
    ['without a pickle', zipSync({ 'a/b': empty }), 'not a zip archive'],
    [
      'with numbers in another order',
      zipSync({ 'a/data.pkl': empty, 'a/byteorder': strToU8('big') }),
      'order of bytes',
    ],
  ])('%s is refused', async (what, bytes, message) => {
    const path = await write(`${what.replaceAll(' ', '-')}.pth`, bytes);
    await expect(TorchFile.open(path)).rejects.toMatchObject(refused(message));
  });

  test('a file with damage at any place is read, or refused with a code', async () => {
    const bytes = await readFile(GOLDEN);
    const damage = fc.record({
      at: fc.nat(bytes.length - 1),
      value: fc.nat(255),
      length: fc.integer({ min: 1, max: bytes.length }),
    });
    await fc.assert(
      fc.asyncProperty(damage, fc.boolean(), async ({ at, value, length }, cut) => {
        const damaged = Buffer.from(cut ? bytes.subarray(0, length) : bytes);
        if (!cut) damaged[at] = value;
        const path = await write('damaged.pth', damaged);
        try {
          const file = await TorchFile.open(path);
          try {
            for (const [name, { shape }] of file.tensors) {
              expect((await file.read(name)).length).toBe(shape.reduce((product, size) => product * size, 1));
            }
          } finally {
            await file.close();
          }
        } catch (error) {
          expect(error).toBeInstanceOf(ServingError);
          expect(error).toMatchObject({ code: 'checkpoint_invalid' });
        }
      }),
      { numRuns: 300 },
    );
  });
});
