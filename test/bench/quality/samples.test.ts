import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Format } from '../../../bench/quality/command.ts';
import { Benchmark } from '../../../bench/quality/samples.ts';
import { benchmarkRow, benchmarkText, FILES, REPOSITORY } from '../../support/benchmark-rows.ts';
import { temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();
const never = new AbortController().signal;

type Choice = Parameters<typeof Benchmark.open>[0];
const open = async (name: string, text: string | Buffer, choice: Partial<Choice> = {}) => {
  const benchmark = join(dir, name);
  await mkdir(dirname(benchmark), { recursive: true });
  await writeFile(benchmark, text);
  return opened(benchmark, choice);
};
const opened = (benchmark: string, choice: Partial<Choice> = {}) => {
  const all = {
    format: 'auto',
    language: 'auto',
    samples: undefined,
    context: 'file',
    repositories: undefined,
  } as const;
  return Benchmark.open({ benchmark, arms: ['off', 'text'], ...all, ...choice }, (given) => given.length, never);
};
const read = async (benchmark: Benchmark) => {
  const samples = [];
  for await (const sample of benchmark.read()) samples.push(sample);
  return samples;
};

describe('a benchmark', () => {
  it('is read as a whole before anything is evaluated, gzipped or not, and its odd things are counted', async () => {
    const rows = benchmarkText('cceval').split('\n').filter(Boolean);
    const odd = [...rows, rows[0]!.replace('{', '{"note": 1, ')].join('\n');
    const benchmark = await open('odd.jsonl.gz', gzipSync(odd));
    expect(benchmark.survey).toMatchObject({
      format: 'cceval',
      language: 'python',
      samples: 6,
      taken: 6,
      unread: { note: 1 },
      repeatedIds: 1,
      withoutChunks: 0,
      longestTarget: 58,
    });
    expect((await read(benchmark)).map(({ id }) => id)).toEqual([
      'shop/5',
      'shop/8',
      'shop/9',
      'shop/12',
      'shop/15',
      'shop/5',
    ]);
  });

  it('a damaged line is refused with its number, however far down it stands', async () => {
    const text = `${benchmarkText('longeval')}\n${JSON.stringify({ ...benchmarkRow('longeval'), prompt: 5 })}\n`;
    await expect(open('bad.jsonl', text)).rejects.toThrow(/bad\.jsonl:7 is not a sample of longeval: prompt/);
    await expect(open('cut.jsonl', benchmarkText('longeval').slice(0, -20))).rejects.toThrow(
      /cut\.jsonl:5 is not JSON/,
    );
    await expect(open('empty.jsonl', '\n')).rejects.toThrow(/has no samples/);
    await expect(open('plain.jsonl.gz', benchmarkText('longeval'))).rejects.toThrow(/is not gzip, or is damaged/);
  });

  it('some of the samples are taken evenly from all, and as many as are asked for', async () => {
    const one = JSON.stringify(benchmarkRow('longeval'));
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 50 }), async (lines, samples) => {
        const benchmark = await open('even.jsonl', `${one}\n`.repeat(lines), { samples });
        const places = (await read(benchmark)).map(({ name }) => Number(name.split(':').at(-1)));
        expect(places).toHaveLength(Math.min(lines, samples));
        const steps = places.slice(1).map((place, i) => place - places[i]!);
        if (steps.length > 0) expect(Math.max(...steps) - Math.min(...steps)).toBeLessThanOrEqual(1);
      }),
      { numRuns: 30 },
    );
  });

  it("RepoEval's code after the gap comes from the repository; a target that is not there is an error", async () => {
    for (const [path, text] of Object.entries(FILES)) {
      await mkdir(join(dir, 'repositories', REPOSITORY), { recursive: true });
      await writeFile(join(dir, 'repositories', REPOSITORY, path), text);
    }
    const choice = { context: 'index', repositories: join(dir, 'repositories') } as const;
    const samples = await read(await open('repoeval.jsonl', benchmarkText('repoeval'), choice));
    expect(samples[1]!.right).toBe(benchmarkRow('cceval', 8)['right_context']);
    const moved = benchmarkText('repoeval').replace('"line_no":8', '"line_no":2');
    await expect(open('moved.jsonl', moved, choice)).rejects.toThrow(/moved\.jsonl:2: its target is not at line 2/);
    const outside = benchmarkText('repoeval').replaceAll('"cart.py"', '"..","..","cart.py"');
    await expect(open('outside.jsonl', outside, choice)).rejects.toThrow(/is not a path in a repository/);
  });

  it('of a folder of llavacode dataset the validation rows are read; a shard of another set is refused', async () => {
    const folder = join(dir, 'dataset');
    const bytes = gzipSync(benchmarkText('llavacode'));
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    const shards = [{ file: 'valid-0.jsonl.gz', samples: 5, bytes: bytes.length, sha256 }];
    const none = { samples: 0, digest: '', shards: [] };
    const splits = { train: none, valid: { samples: 5, digest: '', shards } };
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, 'dataset.json'), JSON.stringify({ format: 1, recipe: {}, splits, statistics: {} }));
    await writeFile(join(folder, 'valid-0.jsonl.gz'), bytes);
    const { survey } = await opened(folder);
    expect(survey).toMatchObject({ format: 'llavacode', samples: 5 });
    await writeFile(join(folder, 'valid-0.jsonl.gz'), gzipSync(benchmarkText('llavacode', 4)));
    await expect(opened(folder)).rejects.toThrow(/valid-0\.jsonl\.gz is not the shard of dataset\.json/);
  });

  it.each<[Format, Partial<Choice> & { readonly text?: readonly [string, string] }, RegExp]>([
    ['repoeval', {}, /has no chunks in its fields: index the repositories/],
    ['cceval', { context: 'index' }, /--context index needs --repositories/],
    ['cceval', { arms: ['zip'] }, /:1: the arm zip needs the field crossfile_context_zipt5_compressed/],
    [
      'cceval',
      { language: 'auto', text: ['cart.py', 'cart.txt'] },
      /names no language that is scored: give --language/,
    ],
  ])('what a benchmark of %s does not hold for %j is refused', async (format, { text, ...choice }, message) => {
    const rows = benchmarkText(format);
    const given = text === undefined ? rows : rows.replaceAll(text[0], text[1]);
    await expect(open('lacking.jsonl', given, choice)).rejects.toThrow(message);
  });

  it('samples of two languages are refused', async () => {
    const rows = benchmarkText('cceval', 1) + benchmarkText('cceval', 2).replaceAll('cart.py', 'Cart.java');
    await expect(open('mixed.jsonl', rows)).rejects.toThrow(/mixed\.jsonl:2 is java, and lines before it are python/);
  });
});
