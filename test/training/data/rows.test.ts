/** Data sets as files of JSON lines, gzipped or not, and as folders of shards. */
import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { digestOfShards } from '../../../training/data/manifest.ts';
import { readDataSet } from '../../../training/data/rows.ts';
import { temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();

const row = (i: number, changes: object = {}) => ({
  prompt: `x = ${i}\n`,
  right_context: '\nprint(x)\n',
  groundtruth: `y = ${i}\u2028\u00e9`, // JSON leaves this line separator as it is
  crossfile_array: ['# a/b.py\nclass A: pass', 'c.py\nz = 1'],
  metadata: { task_id: `a/${i}` },
  ...changes,
});
const lines = (rows: readonly unknown[]) => rows.map((each) => `${JSON.stringify(each)}\n`).join('');
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

async function written(name: string, bytes: string | Uint8Array): Promise<string> {
  const path = join(dir, name);
  await writeFile(path, bytes);
  return path;
}

/** A folder as `llavacode dataset` makes it, with these numbers of samples by shard. */
async function folder(name: string, shards: Record<'train' | 'valid', readonly number[]>): Promise<string> {
  await mkdir(join(dir, name));
  const split = async (of: 'train' | 'valid') => {
    const made = [];
    for (const [i, samples] of shards[of].entries()) {
      const bytes = gzipSync(lines(Array.from({ length: samples }, (_, j) => row(10 * i + j))));
      const file = `${of}-${i}.jsonl.gz`;
      await written(join(name, file), bytes);
      made.push({ file, samples, bytes: bytes.length, sha256: sha256(bytes) });
    }
    return { samples: shards[of].reduce((a, b) => a + b, 0), digest: digestOfShards(made), shards: made };
  };
  const splits = { train: await split('train'), valid: await split('valid') };
  await written(join(name, 'dataset.json'), JSON.stringify({ format: 1, recipe: {}, splits, statistics: {} }));
  return join(dir, name);
}

describe('files', () => {
  test('a file gives its rows in order, each with its line, and its digest', async () => {
    const text = `${lines([row(1)])}\n${lines([row(2)])}`;
    const path = await written('plain.jsonl', text);
    const { rows, digest } = await readDataSet(path, 'train');
    expect(digest).toBe(sha256(Buffer.from(text)));
    expect(rows.map(({ name }) => name)).toEqual([`${path}:1`, `${path}:3`]);
    expect(rows.map(({ left, right, target }) => [left, right, target])).toEqual([
      ['x = 1\n', '\nprint(x)\n', 'y = 1\u2028\u00e9'],
      ['x = 2\n', '\nprint(x)\n', 'y = 2\u2028\u00e9'],
    ]);
    expect(rows[0]!.chunks).toEqual([
      { path: 'a/b.py', text: 'class A: pass' },
      { path: 'c.py', text: 'z = 1' },
    ]);
  });

  test('a gzipped file gives the same rows, also one of several members and of lines longer than a read', async () => {
    const long = row(3, { prompt: 'long = "é"\n'.repeat(40_000) });
    const plain = await readDataSet(await written('some.jsonl', lines([row(1), long, row(2)])), 'train');
    const bytes = Buffer.concat([gzipSync(lines([row(1)])), gzipSync(lines([long, row(2)]))]);
    const packed = await readDataSet(await written('some.jsonl.gz', bytes), 'valid');
    const texts = ({ rows }: typeof plain) =>
      rows.map(({ left, right, target, chunks }) => [left, right, target, chunks]);
    expect(texts(packed)).toEqual(texts(plain));
    expect(packed.rows[1]!.left).toBe(long.prompt);
  });

  test.each([
    ['not JSON', `${lines([row(1)])}{\n`, 'bad.jsonl:2 is not JSON'],
    ['without a target', lines([row(1, { groundtruth: '' })]), 'bad.jsonl:1: groundtruth: has no text'],
    ['without chunks', lines([row(1, { crossfile_array: [] })]), 'bad.jsonl:1: crossfile_array: has no chunk'],
    ['empty', '\n\n', 'bad.jsonl has no samples'],
  ])('a file that is %s is refused with its line', async (_, text, message) => {
    await expect(readDataSet(await written('bad.jsonl', text), 'train')).rejects.toThrow(message);
  });

  test('gzip that is cut off or none is refused by name', async () => {
    const whole = gzipSync(lines([row(1), row(2)]));
    for (const bytes of [whole.subarray(0, -9), Buffer.from(lines([row(1)]))]) {
      await expect(readDataSet(await written('cut.jsonl.gz', bytes), 'train')).rejects.toMatchObject({
        code: 'sample_invalid',
        message: expect.stringContaining('cut.jsonl.gz is not gzip, or is damaged'),
      });
    }
    await expect(readDataSet(join(dir, 'none.jsonl'), 'train')).rejects.toMatchObject({ code: 'path_unusable' });
  });
});

describe('folders', () => {
  test('each split is read from its shards, and its digest covers them all', async () => {
    const path = await folder('set', { train: [2, 3], valid: [1] });
    const [train, valid] = [await readDataSet(path, 'train'), await readDataSet(path, 'valid')];
    expect(train.rows.map(({ left }) => left)).toEqual([0, 1, 10, 11, 12].map((i) => `x = ${i}\n`));
    expect(valid.rows.map(({ name }) => name)).toEqual([`${join(path, 'valid-0.jsonl.gz')}:1`]);
    expect(train.digest).not.toBe(valid.digest);
  });

  test('a shard that is not the one of the manifest is refused', async () => {
    const path = await folder('changed', { train: [2], valid: [] });
    await written('changed/train-0.jsonl.gz', gzipSync(lines([row(8), row(9)])));
    await expect(readDataSet(path, 'train')).rejects.toThrow(/train-0\.jsonl\.gz is not the shard of dataset\.json/);
    await expect(readDataSet(path, 'valid')).rejects.toThrow('the valid split of');
  });

  test('a manifest that names a file elsewhere, or is damaged, is refused', async () => {
    const path = await folder('outside', { train: [1], valid: [] });
    const manifest = (await readFile(join(path, 'dataset.json'), 'utf8')).replace('train-0.', '../train-0.');
    await written('outside/dataset.json', manifest);
    await expect(readDataSet(path, 'train')).rejects.toThrow('splits.train.shards.0.file: is not the name of a shard');
    await written('outside/dataset.json', manifest.slice(0, -3));
    await expect(readDataSet(path, 'train')).rejects.toThrow('dataset.json is not JSON');
    await expect(readDataSet(dir, 'train')).rejects.toMatchObject({
      code: 'path_unusable',
      message: expect.stringContaining('dataset.json, which each folder of llavacode dataset has: it does not exist'),
    });
  });
});
