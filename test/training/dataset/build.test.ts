/** Data sets from folders, archives and parquet files. The test that kills a process runs the built files. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, cp, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { beforeAll, describe, expect, test } from 'vitest';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import type { Split } from '../../../training/data/manifest.ts';
import { buildDataset } from '../../../training/dataset/build.ts';
import { neededNames } from '../../../training/dataset/needed-names.ts';
import type { SampleRow } from '../../../training/dataset/sample-row.ts';
import type { DatasetOptions } from '../../../training/dataset/settings.ts';
import { lockRun } from '../../../training/run/lock.ts';
import { type Files, tarGzOfFiles, tarOfFiles, zipOfFiles } from '../../support/archives.ts';
import { madeModule, madeRepository, writeFiles } from '../../support/made-repositories.ts';
import { temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();
const FIXTURE = join(PACKAGE_ROOT, 'dist/test/training/dataset/killed.fixture.js');
const TIMEOUT_MS = 300_000;
const NAMES = ['amber', 'birch', 'cedar', 'delta', 'ember', 'fjord', 'grove', 'haven'];
const never = new AbortController().signal;

const warnings: string[] = [];
const updates: string[] = [];
const progress = {
  start: () => {},
  update: (text: string) => void updates.push(text),
  succeed: () => {},
  warn: (text: string) => void warnings.push(text),
  fail: () => {},
};

const repositories = join(dir, 'repositories');
/** The same, and in the last of them copies of files of a validation repository. */
const leaking = join(dir, 'leaking');
beforeAll(async () => {
  for (const name of NAMES) await writeFiles(repositories, madeRepository(name));
  await build('plain');
  const [held, last] = [(await rowsOf('plain', 'valid'))[0]!, (await rowsOf('plain', 'train')).at(-1)!];
  const { repository } = held.metadata;
  await cp(repositories, leaking, { recursive: true });
  await writeFiles(join(leaking, last.metadata.repository), {
    'exact.py': madeModule(repository, 3),
    'near.py': `${madeModule(repository, 4)}\ndef one_more_function():\n    return 1\n`,
  });
}, TIMEOUT_MS);

const options = (to: string, changes: Partial<DatasetOptions> = {}): DatasetOptions => ({
  sources: [repositories],
  to: join(dir, to),
  language: 'python',
  samples: undefined,
  validShare: 0.25,
  about: undefined,
  exclude: undefined,
  licences: undefined,
  minStars: 50,
  minFiles: 5,
  minImports: 3,
  maxFileBytes: 100_000,
  maxRepositoryBytes: 1_000_000,
  meanLines: 2,
  perRepository: 12,
  chunks: 10,
  retriever: 'jaccard',
  seed: 1,
  shardSamples: 20,
  ...changes,
});
const build = (to: string, changes: Partial<DatasetOptions> = {}) =>
  buildDataset(options(to, changes), progress, never);

async function rowsOf(to: string, split: Split): Promise<SampleRow[]> {
  const names = (await readdir(join(dir, to))).filter((name) => name.startsWith(split)).sort();
  const texts = await Promise.all(
    names.map(async (name) => gunzipSync(await readFile(join(dir, to, name))).toString()),
  );
  return texts.flatMap((text) => text.trim().split('\n')).map((line) => JSON.parse(line) as SampleRow);
}
async function bytesOf(to: string): Promise<Record<string, string>> {
  const names = (await readdir(join(dir, to))).sort();
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, (await readFile(join(dir, to, name))).toString('base64')])),
  );
}
const repositoriesOf = (rows: readonly SampleRow[]) => [...new Set(rows.map((row) => row.metadata.repository))].sort();
async function about(name: string, lines: readonly string[]): Promise<string> {
  const path = join(dir, `${name}.csv`);
  await writeFile(path, `repository,stars,licence\n${lines.join('\n')}\n`);
  return path;
}

describe('a data set', () => {
  test('samples fill holes of their files, and no repository is in both splits', { timeout: TIMEOUT_MS }, async () => {
    const manifest = await build('plain');
    const [train, valid] = [await rowsOf('plain', 'train'), await rowsOf('plain', 'valid')];
    expect(manifest.splits.train.samples).toBe(train.length);
    expect(manifest.splits.valid.samples).toBe(valid.length);
    expect(train.length).toBeGreaterThan(50);
    expect([...repositoriesOf(train), ...repositoriesOf(valid)].sort()).toEqual(NAMES);
    expect(repositoriesOf(valid)).toHaveLength(2);
    for (const row of [...train, ...valid]) {
      const { repository, file, lineno, lines } = row.metadata;
      const text = await readFile(join(repositories, repository, file), 'utf8');
      const split = valid.includes(row) ? 'valid' : 'train';
      expect(row.prompt + row.groundtruth + row.right_context).toBe(text);
      expect(row.prompt.split('\n')).toHaveLength(lineno);
      expect(row.groundtruth.split('\n').filter((line) => line.trim() !== '')).toHaveLength(lines);
      expect(row.groundtruth.trim() === row.groundtruth || split === 'train').toBe(true);
      expect(split === 'valid' ? lines : 1).toBe(1);
      expect(row.crossfile_array).toHaveLength(10);
      expect(row.crossfile_array.map((chunk) => chunk.split('\n')[0])).not.toContain(file);
      for (const chunk of row.crossfile_array) {
        expect(chunk.split('\n').length - 1).toBeLessThanOrEqual(10 * lines);
      }
    }
    expect(train.some((row) => row.metadata.lines > 1)).toBe(true);
    const { list, text } = valid[0]!.crossfile_context!;
    expect(list.map(({ filename, retrieved_chunk }) => `${filename}\n${retrieved_chunk}`)).toEqual(
      valid[0]!.crossfile_array,
    );
    expect(text.split('\n').every((line) => line === '' || line.startsWith('# '))).toBe(true);
    expect(updates.at(-1)).toMatch(/^8 of 8 repositories, \d+ samples, [\d.]+ a second, 0 s left$/);
  });

  test('with needsChunks there are the samples of the same holes that need a name of another file', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const { statistics, splits } = await build('needing', { needsChunks: true });
    let [kept, whole] = [0, 0];
    for (const split of ['train', 'valid'] as const) {
      const all = await rowsOf('plain', split);
      const wanted = all.filter((row) => neededNames(row).length > 0);
      expect(splits[split].samples).toBe(wanted.length);
      if (wanted.length > 0) expect(await rowsOf('needing', split)).toEqual(wanted);
      [kept, whole] = [kept + wanted.length, whole + all.length];
    }
    expect(kept).toBeGreaterThan(0);
    expect(kept).toBeLessThan(whole);
    expect(statistics).toMatchObject({ leftOut: { holes: { no_needed_name: expect.any(Number) } } });
  });

  test('the chunks of a sample are the best by Jaccard, as counted by comparing all', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const words = (text: string) => new Set(text.match(/[\p{L}\p{N}_]+/gu));
    const nonBlank = (text: string) => text.split('\n').filter((line) => line.trim() !== '');
    const jaccard = (a: ReadonlySet<string>, b: ReadonlySet<string>) => {
      const both = [...a].filter((word) => b.has(word)).length;
      return both / (a.size + b.size - both);
    };
    await build('plain');
    for (const row of (await rowsOf('plain', 'train')).filter((_, i) => i % 7 === 0)) {
      const { repository, file, lines: n, lineno } = row.metadata;
      const text = (await readFile(join(repositories, repository, file), 'utf8')).split('\n');
      const hole = row.groundtruth.split('\n').length;
      const before = nonBlank(text.slice(0, lineno - 1).join('\n')).slice(-10 * n);
      const query = words(
        [...before, ...nonBlank(text.slice(lineno - 1 + hole).join('\n')).slice(0, 5 * n)].join('\n'),
      );
      const chunks: { id: string; score: number }[] = [];
      for (const path of (await readdir(join(repositories, repository))).filter((each) => each !== file)) {
        const lines = nonBlank(await readFile(join(repositories, repository, path), 'utf8'));
        for (let at = 0; at === 0 || at + 5 * n < lines.length; at += 5 * n) {
          const chunk = lines.slice(at, at + 10 * n).join('\n');
          chunks.push({ id: `${path}\n${chunk}`, score: jaccard(query, words(chunk)) });
        }
      }
      chunks.sort((a, b) => b.score - a.score);
      const score = new Map(chunks.map(({ id, score }) => [id, score]));
      const found = row.crossfile_array.map((chunk) => score.get(chunk)!);
      expect(found[0]).toBe(chunks[0]!.score);
      expect(found).toEqual(found.toSorted((a, b) => b - a)); // best first
      const chosen = row.crossfile_array.map(words);
      for (const { id, score } of chunks) {
        if (score <= found.at(-1)!) break;
        const repeats = chosen.some((other) => jaccard(other, words(id)) >= 0.7); // the path is a word of it here
        expect(row.crossfile_array.includes(id) || repeats).toBe(true);
      }
    }
  });

  test('a data set that is there is not made again, and others are refused its folder', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const first = await build('plain');
    const before = await bytesOf('plain');
    expect(await build('plain')).toEqual(first);
    expect(await bytesOf('plain')).toEqual(before);
    await expect(build('plain', { seed: 2 })).rejects.toMatchObject({ code: 'config_invalid' });
  });
});

describe('sources', () => {
  test('folders, archives and parquet files of the same repositories give the same bytes', {
    timeout: TIMEOUT_MS,
  }, async () => {
    await build('from-folders');
    const archives = join(dir, 'archives');
    await mkdir(archives);
    const pack = [
      ['.tar', tarOfFiles],
      ['.tar.gz', tarGzOfFiles],
      ['.tgz', tarGzOfFiles],
      ['.zip', async (files: Files) => zipOfFiles(files)],
    ] as const;
    for (const [i, name] of NAMES.entries()) {
      const [ending, packed] = pack[i % pack.length]!;
      const inside = Object.entries(madeRepository(name)).map(([path, text]) => [path.slice(name.length + 1), text]);
      await writeFile(join(archives, name + ending), await packed(Object.fromEntries(inside) as Files));
    }
    await build('from-archives', { sources: [archives] });
    expect(await bytesOf('from-archives')).toEqual(await bytesOf('from-folders'));

    const files = NAMES.flatMap((name) =>
      Object.entries(madeRepository(name)).map(([path, text]) => ({ name, path, text })),
    );
    const rows = files.toSorted((a, b) => (a.path.slice(5) < b.path.slice(5) ? -1 : 1)); // repositories lie scattered
    const parquet = join(dir, 'stack');
    await mkdir(parquet);
    for (const half of [0, 1]) {
      const part = rows.filter((_, i) => i % 2 === half);
      const column = (name: string, data: unknown[]) => ({ name, data });
      const columns = [
        column(
          'max_stars_repo_name',
          part.map((row) => row.name),
        ),
        column(
          'max_stars_repo_path',
          part.map((row) => row.path.slice(row.name.length + 1)),
        ),
        column(
          'max_stars_count',
          part.map(() => 60n),
        ),
        column(
          'content',
          part.map((row) => String(row.text)),
        ),
      ];
      const bytes = parquetWriteBuffer({ columnData: columns as never, rowGroupSize: 10 });
      await writeFile(join(parquet, `${half}.parquet`), new Uint8Array(bytes));
    }
    await build('from-parquet', { sources: [parquet] });
    for (const split of ['train', 'valid'] as const) {
      expect(await rowsOf('from-parquet', split)).toEqual(await rowsOf('from-folders', split));
    }
    await expect(build('from-parquet-stars', { sources: [parquet], minStars: 61 })).rejects.toThrow(
      /"few_stars":8\}.*; lower --min-stars, or name more sources$/,
    );
  });

  test('an archive that is damaged is left out with a warning, and the others are read', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const sources = join(dir, 'damaged');
    await cp(repositories, sources, { recursive: true });
    await writeFile(join(sources, 'broken.zip'), 'PK\u0003\u0004 not a zip');
    const manifest = await build('from-damaged', { sources: [sources] });
    expect(manifest.statistics['leftOut']).toMatchObject({ repositories: { unreadable: 1 } });
    expect(warnings.join('\n')).toContain('broken is left out: the upload is not a valid zip');
  });

  test('a second process in one folder is refused', async () => {
    await mkdir(join(dir, 'locked'));
    const release = await lockRun(join(dir, 'locked'));
    try {
      const message = expect.stringContaining(`locked: process ${process.pid} works on this run`);
      await expect(build('locked')).rejects.toMatchObject({ code: 'path_unusable', message });
    } finally {
      await release();
    }
  });

  test('a data set in one of its own sources is refused, also behind a link, and one beside it is made', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const link = join(dir, 'link');
    await symlink(repositories, link);
    for (const to of [repositories, join(repositories, 'made'), join(repositories, 'amber', 'a', 'b'), link]) {
      await expect(buildDataset({ ...options(''), to }, progress, never), to).rejects.toMatchObject({
        code: 'config_invalid',
        message: expect.stringMatching(/^--to .* lies in the source .*: name a folder outside of it$/),
      });
    }
    expect((await readdir(repositories)).sort()).toEqual(NAMES);
    await build('repositories-beside', { samples: 5 }); // the source's name is only the beginning of its name
  });

  test('a limit of stars that somebody asked for is refused where no stars are known', {
    timeout: TIMEOUT_MS,
  }, async () => {
    await expect(build('starless', { needsStars: true })).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringMatching(/^--min-stars 50 would have no effect: .*: give --about with a CSV/),
    });
    const known = await about('one-known', ['amber,51,MIT']);
    await build('starred', { needsStars: true, about: known, samples: 5 });
  });

  test('sources that are missing, empty or not what they seem are refused by name', async () => {
    const file = (name: string) => join(dir, name);
    await mkdir(file('nothing'));
    await writeFile(file('not.parquet'), 'PAR1 but no more');
    const bytes = parquetWriteBuffer({ columnData: [{ name: 'blob_id', data: ['a'] }] });
    await writeFile(file('v2.parquet'), new Uint8Array(bytes));
    await expect(build('x', { sources: [file('missing')] })).rejects.toMatchObject({ code: 'path_unusable' });
    await expect(build('x', { sources: [file('nothing')] })).rejects.toThrow('nothing holds no repositories');
    await expect(build('x', { sources: [file('not.parquet')] })).rejects.toMatchObject({ code: 'sample_invalid' });
    await expect(build('x', { sources: [file('v2.parquet')] })).rejects.toThrow('no column for the repository');
  });
});

describe('filters', () => {
  test('stars, licences and names of a CSV and a list leave repositories out', { timeout: TIMEOUT_MS }, async () => {
    const exclude = join(dir, 'excluded.txt');
    await writeFile(exclude, 'haven\n');
    const sources = join(dir, 'licensed');
    await cp(repositories, sources, { recursive: true });
    const words = 'Permission is hereby granted, free of charge, to any person obtaining a copy';
    await writeFiles(sources, { 'grove/LICENSE': words });
    const manifest = await build('filtered', {
      sources: [sources],
      about: await about('filtered', ['amber,49,MIT', 'birch,50,MIT', 'cedar,,GPL-3.0', 'delta,,MIT', 'ember,,"MIT"']),
      exclude,
      licences: ['MIT'],
    });
    const kept = [...(await rowsOf('filtered', 'train')), ...(await rowsOf('filtered', 'valid'))];
    expect(repositoriesOf(kept)).toEqual(['birch', 'delta', 'ember', 'grove']);
    expect(manifest.statistics['leftOut']).toMatchObject({
      repositories: { excluded: 1, few_stars: 1, licence: 2 },
    });
  });

  test('files that are generated, copied or of few imports give no holes', { timeout: TIMEOUT_MS }, async () => {
    const sources = join(dir, 'mixed');
    await cp(repositories, sources, { recursive: true });
    const few = madeModule('amber', 90).replaceAll(/^(import|from) .*\n/gm, '');
    await writeFiles(sources, {
      'amber/few.py': few,
      'amber/generated.py': `# generated by a tool\n${madeModule('amber', 91)}`,
      'amber/copy.py': madeModule('amber', 1),
    });
    const manifest = await build('mixed-set', { sources: [sources], perRepository: 1_000 });
    const files = (await rowsOf('mixed-set', 'train')).concat(await rowsOf('mixed-set', 'valid'));
    const ofAmber = new Set(files.filter((row) => row.metadata.repository === 'amber').map((row) => row.metadata.file));
    expect([...ofAmber].filter((file) => !/^(m\d+|copy)\.py$/.test(file))).toEqual([]);
    expect(ofAmber.size).toBe(14); // of m1.py and its copy only the first
    expect(manifest.statistics['leftOut']).toMatchObject({ files: { generated: 1, copy: 1 } });
  });

  test('exact and near copies of validation files are not in the training split', { timeout: TIMEOUT_MS }, async () => {
    const manifest = await build('leaking-set', { sources: [leaking], perRepository: 1_000 });
    const held = (await rowsOf('plain', 'valid'))[0]!.metadata.repository;
    expect(repositoriesOf(await rowsOf('leaking-set', 'valid'))).toContain(held);
    const train = await rowsOf('leaking-set', 'train');
    expect(train.filter((row) => JSON.stringify(row).includes(`${held}_`))).toEqual([]);
    expect(manifest.statistics['leftOut']).toMatchObject({ files: { copy: 1, near_copy: 1 } });
  });

  test('the number of samples is bounded, and what leaves nothing is said', { timeout: TIMEOUT_MS }, async () => {
    const manifest = await build('bounded', { samples: 30, validShare: 0.25 });
    expect([manifest.splits.train.samples, manifest.splits.valid.samples]).toEqual([30, 8]);
    await expect(build('none', { minFiles: 50 })).rejects.toThrow(/no samples came of 8 repositories.*"few_files":8/);
    expect((await build('none', { samples: 5 })).splits.train.samples).toBe(5); // the folder can be used again
  });
});

describe('a run that is killed', () => {
  test.each([1, 3, 6])(
    'goes on after %i repositories to the bytes of one that was not',
    { timeout: TIMEOUT_MS },
    async (done) => {
      await build('whole', { sources: [leaking] });
      const given = options(`killed-${done}`, { sources: [leaking] });
      const child = spawn(process.execPath, [FIXTURE, JSON.stringify(given), String(done)], { stdio: 'inherit' });
      const [, signal] = await once(child, 'exit');
      expect(signal).toBe('SIGKILL');
      await expect(access(join(given.to, 'dataset.json'))).rejects.toThrow('ENOENT');
      updates.length = 0;
      await buildDataset(given, progress, never);
      if (done > 2) expect(updates.some((text) => text.startsWith('1 of'))).toBe(false); // it did not begin anew
      expect(await bytesOf(`killed-${done}`)).toEqual(await bytesOf('whole'));
    },
  );

  test('that was stopped keeps its whole repositories, and goes on to the same bytes', {
    timeout: TIMEOUT_MS,
  }, async () => {
    await build('whole', { sources: [leaking] });
    const given = options('interrupted', { sources: [leaking] });
    for (const done of [1, 3, 4, 6]) {
      const stop = new AbortController();
      const seen: string[] = [];
      const update = (text: string) => {
        seen.push(text);
        if (text.startsWith(`${done} of 8`)) stop.abort(new Error('stopped by the test'));
      };
      await expect(buildDataset(given, { ...progress, update }, stop.signal)).rejects.toThrow('stopped by the test');
      const first = seen.find((text) => text.includes('repositories'))!;
      // It goes on with the repository after the last one that was done, whatever shard that is in.
      expect(first.startsWith(`${{ 1: 1, 3: 2, 4: 4, 6: 5 }[done]} of 8`), first).toBe(true);
    }
    await buildDataset(given, progress, never);
    expect(await bytesOf('interrupted')).toEqual(await bytesOf('whole'));
  });

  test('with other settings it does not go on', { timeout: TIMEOUT_MS }, async () => {
    const stop = new AbortController();
    const stopping = {
      ...progress,
      update: (text: string) => text.startsWith('4 of') && stop.abort(new Error('stopped by the test')),
    };
    await expect(buildDataset(options('stopped'), stopping, stop.signal)).rejects.toThrow('stopped by the test');
    await expect(build('stopped', { meanLines: 5 })).rejects.toThrow('holds a run with other settings');
  });
});
