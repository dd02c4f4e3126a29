/** What the writer writes is what the reader reads, and a file is never left in part. */
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { SafetensorsFile } from '../../../services/lib/model/checkpoint/safetensors.ts';
import { type WrittenTensor, writeSafetensors } from '../../../services/lib/model/checkpoint/safetensors-writer.ts';
import { temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();
const tensor = (shape: number[], ...values: number[]): WrittenTensor => ({ shape, data: Float32Array.from(values) });

test('any tensors are read as they were written, bit for bit, and the same tensors give the same bytes', async () => {
  const dims = fc.array(fc.nat(4), { maxLength: 3 });
  const filled = dims.chain((shape) => {
    const length = shape.reduce((product, size) => product * size, 1);
    // Any 32 bits: also numbers that are not finite, and -0.
    const bits = fc.array(fc.integer(), { minLength: length, maxLength: length });
    return bits.map((words): WrittenTensor => ({ shape, data: new Float32Array(Int32Array.from(words).buffer) }));
  });
  const name = fc.oneof(fc.string({ unit: 'binary' }), fc.constantFrom('__proto__', 'toString', '0', '"'));
  const files = fc.uniqueArray(fc.tuple(name, filled), { selector: ([key]) => key, maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(files, fc.dictionary(fc.string(), fc.string(), { maxKeys: 2 }), async (entries, notes) => {
      const [path, again] = [join(dir, 'any.safetensors'), join(dir, 'again.safetensors')];
      const tensors = new Map(entries.filter(([key]) => key !== '__metadata__'));
      await writeSafetensors(path, tensors, notes);
      await writeSafetensors(again, tensors, notes);
      expect(await readFile(again)).toEqual(await readFile(path));
      const file = await SafetensorsFile.open(path);
      try {
        expect([...file.tensors.keys()].sort()).toEqual([...tensors.keys()].sort());
        for (const [key, { shape, data }] of tensors) {
          expect(file.tensors.get(key)!.shape).toEqual(shape);
          expect(new Uint8Array((await file.read(key)).buffer)).toEqual(new Uint8Array(data.buffer));
        }
      } finally {
        await file.close();
      }
    }),
    { numRuns: 60 },
  );
});

test('a view into a larger array is written alone', async () => {
  const path = join(dir, 'view.safetensors');
  const all = Float32Array.of(1, 2, 3, 4);
  await writeSafetensors(path, new Map([['x', { shape: [2], data: all.subarray(1, 3) }]]));
  const file = await SafetensorsFile.open(path);
  expect(await file.read('x')).toEqual(Float32Array.of(2, 3));
  await file.close();
});

test('values that do not fill the shape are refused before anything is written, and so is the name of the notes', async () => {
  const path = join(dir, 'kept.safetensors');
  await writeFile(path, 'old');
  const refused = (name: string, what: string) => ({
    code: 'checkpoint_invalid',
    message: expect.stringMatching(`kept.*${name}.*${what}`),
  });
  await expect(writeSafetensors(path, new Map([['x', tensor([2, 2], 1, 2, 3)]]))).rejects.toMatchObject(
    refused('"x"', '3 values.*\\[2,2\\]'),
  );
  await expect(writeSafetensors(path, new Map([['__metadata__', tensor([1], 1)]]))).rejects.toMatchObject(
    refused('__metadata__', 'rename'),
  );
  expect(await readFile(path, 'utf8')).toBe('old');
});

test('where a file cannot be written, the error names the path, and nothing is left beside it', async () => {
  const folder = join(dir, 'folder');
  await mkdir(join(folder, 'taken', 'inside'), { recursive: true });
  const one = new Map([['x', tensor([1], 1)]]);
  // A rename onto a folder with something in it fails after the data have been written.
  await expect(writeSafetensors(join(folder, 'taken'), one)).rejects.toMatchObject({ code: 'path_unusable' });
  await expect(writeSafetensors(join(folder, 'none', 'x'), one)).rejects.toMatchObject({
    code: 'path_unusable',
    message: expect.stringContaining('none'),
  });
  expect(await readdir(folder)).toEqual(['taken']);
});
