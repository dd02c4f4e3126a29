/** Uploads of repositories: read, or refused as the client's fault; within bounds, and with nothing left behind. */
import { readdirSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { readUpload, type UploadFormat } from '../../services/indexer/archive.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { inParts, tarOf, zipOfFiles } from '../support/archives.ts';
import { damaged, distorted, fuzz, TIMEOUT_MS } from './budget.ts';

const LIMITS = { maxFileBytes: 2_000, maxUploadBytes: 100_000, maxRepoBytes: 20_000, maxRepoFiles: 30 };
const NEVER = new AbortController().signal;

const names = fc.oneof(
  fc.constantFrom(
    'a.py',
    'src/b.ts',
    '../up.py',
    '/etc/passwd',
    'a/../../b',
    '.gitignore',
    'a\\b.py',
    'c:\\x.py',
    '',
    '.',
    'x'.repeat(5_000),
  ),
  fc.string({ unit: 'binary', maxLength: 40 }),
  fc.integer({ min: 1, max: 500 }).map((depth) => `${'a/'.repeat(depth)}b.py`),
);
/** Rules of a .gitignore that take long to match. */
const rules = fc.string({ unit: fc.constantFrom('a', '/', '**/', '*', '?', '[!b]', '!', '\n', '\\'), maxLength: 150 });
const contents = fc.oneof(
  fc.string({ maxLength: 50 }),
  fc.constant('x = 1\n'.repeat(500)),
  fc.constant('*.py\n!a.py\n**/['),
  rules,
);
const files = fc
  .tuple(fc.option(rules), fc.array(fc.tuple(names, contents), { maxLength: 8 }))
  .map(([own, list]) => [...(own === null ? [] : [['.gitignore', own] as [string, string]]), ...list]);
const types = fc.constantFrom('file', 'directory', 'symlink', 'link', 'character-device', 'fifo', 'contiguous-file');

const tars = fc
  .array(fc.record({ name: names.filter((name) => name !== ''), type: types, content: contents }), { maxLength: 8 })
  .map(
    (entries) =>
      entries.map(({ type, ...entry }) => ({ ...entry, type, linkname: 'a.py' })) as Parameters<typeof tarOf>[0],
  );

/** Opened files of this process, where the system tells. */
const openFiles = () => {
  try {
    return readdirSync('/proc/self/fd').length;
  } catch {
    return 0;
  }
};

async function read(format: UploadFormat, bytes: Uint8Array, strip: number): Promise<boolean> {
  try {
    const sources = await readUpload({ format, strip, bytes: inParts(bytes, 777) }, LIMITS, NEVER);
    try {
      expect(sources.paths.length).toBeLessThanOrEqual(LIMITS.maxRepoFiles);
      for (const path of sources.paths) {
        expect(path).not.toMatch(/^\/|(^|\/)\.\.(\/|$)|^$/);
        const source = await sources.read(path);
        if ('text' in source) expect(Buffer.byteLength(source.text)).toBeLessThanOrEqual(LIMITS.maxFileBytes);
      }
      return true;
    } finally {
      await sources.close();
    }
  } catch (error) {
    expect(error).toBeInstanceOf(ServingError);
    expect((error as ServingError).kind.http, (error as Error).message).toBeLessThan(500);
    return false;
  }
}

test('archives near valid ones are read or refused with a 4xx status, and leave no file open', {
  timeout: TIMEOUT_MS,
}, async () => {
  const before = openFiles();
  const archive = fc.oneof(
    tars.map((entries) => ['tar', async () => tarOf(entries)] as const),
    tars.map((entries) => ['tar.gz', async () => gzipSync(await tarOf(entries))] as const),
    files.map((list) => ['zip', async () => zipOfFiles(Object.fromEntries(list))] as const),
  );
  const inputs = fc.tuple(archive, fc.infiniteStream(fc.nat(255)), fc.boolean(), fc.constantFrom(0, 1, 99));
  await fuzz('upload archives', inputs, async ([[format, make], noise, broken, strip]) => {
    let bytes: Uint8Array;
    try {
      bytes = Uint8Array.from(await make());
    } catch {
      return false; // names that the archiver itself does not take
    }
    if (broken && bytes.length > 0) {
      for (let i = 0; i < 3; i++) {
        const [high, low, value] = [noise.next().value, noise.next().value, noise.next().value] as number[];
        bytes[(high! * 256 + low!) % bytes.length] = value!;
      }
    }
    return read(format, bytes, strip);
  });
  expect(openFiles()).toBeLessThanOrEqual(before + 5);
});

test('JSON uploads near valid ones are read or refused with a 4xx status, and leave no file open', {
  timeout: TIMEOUT_MS,
}, async () => {
  const before = openFiles();
  const whole = files.map((list) => ({ files: list.map(([path, content]) => ({ path, content })) }));
  const changes = files.map((list) => ({
    changes: [...list.map(([path, content]) => ({ path, content })), { path: 'gone.py', deleted: true }],
    base_version: 'x',
  }));
  const json = fc
    .oneof(whole, changes)
    .chain(distorted)
    .map((value) => Buffer.from(JSON.stringify(value)));
  await fuzz('upload JSON', fc.oneof(json, damaged(json)), (bytes) => read('json', bytes, 0));
  expect(openFiles()).toBeLessThanOrEqual(before + 5);
});
