/** .gitignore files are read as git reads them, for trees and uploads alike, in bounded time whatever they contain. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import ignore from 'ignore';
import { describe, expect, onTestFinished, test } from 'vitest';
import { readUpload } from '../../services/indexer/archive.ts';
import { IgnoreRules } from '../../services/indexer/gitignore.ts';
import { treeSources } from '../../services/indexer/sources.ts';
import { inParts, jsonOfFiles } from '../support/archives.ts';

function rulesOf(files: Record<string, string>): IgnoreRules {
  const rules = new IgnoreRules();
  for (const [folder, text] of Object.entries(files)) rules.add(folder, text);
  return rules;
}

/** Rules, with paths that `git check-ignore` excludes and paths that it keeps. */
const CASES: [rules: string, excluded: readonly string[], kept: readonly string[]][] = [
  ['a', ['a', 'x/a', 'a/b'], ['A', 'ab', 'ba']],
  ['/a', ['a', 'a/b'], ['x/a']],
  ['a/b', ['a/b', 'a/b/c'], ['x/a/b', 'a']],
  ['a/', ['a/b', 'x/a/b', 'a/'], ['a', 'x/a']],
  ['Debug/\nTODO', ['Debug/a.py', 'TODO'], ['debug/a.py', 'src/todo']],
  ['*.log\n!keep.log', ['a.log', 'x/b.log'], ['keep.log', 'x/keep.log', 'a.logs']],
  ['a\n!a/b', ['a/b'], []],
  ['a/*\n!a/b', ['a/c'], ['a/b', 'a']],
  ['**/b', ['b', 'a/b', 'a/c/b/d'], ['a/bc']],
  ['a/**', ['a/b', 'a/b/c'], ['a', 'x/a/b']],
  ['a/**/b', ['a/b', 'a/x/b', 'a/x/y/b'], ['b', 'a/bx', 'x/a/b']],
  ['a/**/', ['a/b/c'], ['a', 'a/b']],
  ['a*c', ['ac', 'abc', 'x/abbc'], ['a/c', 'ab']],
  ['a/*/c', ['a/b/c'], ['a/c', 'a/b/b/c']],
  ['a?', ['ab', 'aé'], ['a', 'abc', 'a/b']],
  ['[ab]c\n[!x-z]1\n[^2]2', ['ac', 'bc', 'a1', '12'], ['cc', 'x1', '22']],
  ['[]a]\n[a\\]]b\n[b-]c', [']', 'a', ']b', '-c'], ['b', 'ac', 'cc']],
  ['[[:digit:]x]\n[[:upper:]]1', ['1', 'x', 'A1'], ['a', 'a1', ':']],
  ['\\#a\n\\!b\n#c', ['#a', '!b'], ['a', 'b', 'c', '#c']],
  ['a   \nb\\ \nc\r', ['a', 'b ', 'c'], ['b', 'a   ', 'c\r']],
  ['\\*\na\\b\n\\', ['*', 'ab'], ['x', 'a\\b', '\\']],
  ['[a\n[[:none:]]\n/\n!\n\n   ', [], ['a', '[a', ' ']],
  ['***', ['a', 'a/b'], []],
  ['a.c', ['a.c'], ['abc']],
];

test.each(CASES)('the rules %j exclude what git says they exclude', (text, excluded, kept) => {
  const rules = rulesOf({ '': text });
  expect([...excluded, ...kept].filter((path) => rules.excludes(path))).toEqual(excluded);
});

test('the deepest .gitignore with an opinion decides, but nothing comes back out of an excluded folder', () => {
  const rules = rulesOf({ '': '*.log\nout/', 'sub/': '!a.log\n/b', 'sub/deep/': 'a.log', 'out/': '!kept' });
  expect(['a.log', 'sub/deep/a.log', 'sub/b', 'out/kept'].map((path) => rules.excludes(path))).not.toContain(false);
  expect(['sub/a.log', 'sub/deep/b', 'b'].map((path) => rules.excludes(path))).not.toContain(true);
});

test('a decision is that of the library ignore, whatever was asked before', () => {
  const part = fc.constantFrom('a', 'b', 'ab', 'a*', '*b', '?', '*', '**', '[ab]', '[!a]b');
  const rule = fc
    .tuple(fc.constantFrom('', '', '!'), fc.constantFrom('', '/'), fc.array(part, { minLength: 1, maxLength: 4 }))
    .chain(([not, root, parts]) => fc.constantFrom('', '/').map((end) => `${not}${root}${parts.join('/')}${end}`));
  const path = fc.array(fc.constantFrom('a', 'b', 'ab', 'A'), { minLength: 1, maxLength: 5 }).map((it) => it.join('/'));
  fc.assert(
    fc.property(fc.array(rule, { maxLength: 5 }), fc.array(path, { maxLength: 20 }), (lines, paths) => {
      const rules = rulesOf({ '': lines.join('\n') });
      const oracle = ignore({ ignorecase: false }).add(lines);
      for (const each of paths) expect(rules.excludes(each), each).toBe(oracle.ignores(each));
    }),
    { numRuns: 2_000 },
  );
});

describe('rules that a stranger writes', () => {
  test.each([
    [`${'a/**/'.repeat(4)}b`, 2_000],
    [`**/${'a/**/'.repeat(200)}b`, 2_000],
    [`**/${'a/'.repeat(500)}b`, 1_000],
    [`${'*a'.repeat(500)}b`, 1],
    [`*[${'[:'.repeat(500)}x]b`, 1],
    [`*[${'a-c'.repeat(300)}]b`, 1],
  ])('a rule takes no longer than its length times the length of the path (%#)', (rule, depth) => {
    const rules = rulesOf({ '': rule });
    expect(rules.excludes(`${'a/'.repeat(depth - 1)}${'a'.repeat(4_000 / depth)}`)).toBe(false);
  });

  test('a path is decided rule by rule, so that other work has its turn', () => {
    const deciding = rulesOf({ '': 'x\n'.repeat(1_000) }).decide('a/b');
    let turns = 0;
    while (!deciding.next().done) turns++;
    expect(turns).toBe(2_000);
  });

  test('rules are bounded in number and length', () => {
    const refused = expect.objectContaining({ code: 'payload_too_large' });
    const rules = rulesOf({ '': 'a\n'.repeat(9_000), 'sub/': '# a comment\n\n'.repeat(9_000) });
    expect(() => rules.add('other/', 'b\n'.repeat(1_001))).toThrowError(refused);
    expect(() => rulesOf({ '': `${'?'.repeat(1_000)}\n`.repeat(1_050) })).toThrowError(refused);
    expect(() => rulesOf({ '': '?'.repeat(1_025) })).toThrowError(refused);
  });

  test('an upload is read no longer than somebody waits for it', async () => {
    const gone = new AbortController();
    const files = Object.fromEntries(Array.from({ length: 99 }, (_, i) => [`${'a/'.repeat(1_000)}${i}`, 'x']));
    const body = jsonOfFiles({ '.gitignore': `${`**/${'a/'.repeat(500)}b\n`.repeat(900)}`, ...files });
    const limits = { maxFileBytes: 1e6, maxUploadBytes: 1e7, maxRepoBytes: 1e7, maxRepoFiles: 100 };
    const reading = readUpload({ format: 'json', strip: 0, bytes: inParts(body) }, limits, gone.signal);
    setTimeout(() => gone.abort(new Error('hung up')), 50); // deciding all paths would take hours
    await expect(reading).rejects.toThrowError('hung up');
  });
});

test('a tree and an upload of it give the same files and the same text', async () => {
  const files = {
    '.gitignore': '\ufeffDebug/\n*.log\n!kept.log',
    'Debug/a.py': 'x',
    'debug/b.py': '\ufeffimport os',
    'sub/.gitignore': '!a.log\n/b.py',
    'sub/a.log': 'x',
    'sub/b.py': 'x',
    'sub/c/b.py': 'x',
    'kept.log': 'x',
    'b.log': 'x',
  };
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-gitignore-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(dir, path)), { recursive: true });
    await writeFile(join(dir, path), text);
  }
  const limits = { maxFileBytes: 1e6, maxUploadBytes: 1e6, maxRepoBytes: 1e6, maxRepoFiles: 100 };
  const body = { format: 'json' as const, strip: 0, bytes: inParts(jsonOfFiles(files)) };
  const upload = await readUpload(body, limits, new AbortController().signal);
  onTestFinished(() => upload.close());
  const tree = await treeSources(dir, { maxFileBytes: 1e6 });
  expect(upload.paths).toEqual(['debug/b.py', 'kept.log', 'sub/a.log', 'sub/c/b.py']);
  expect(tree.paths).toEqual(upload.paths);
  for (const path of tree.paths) expect(await upload.read(path)).toEqual(await tree.read(path));
  expect(await upload.read('debug/b.py')).toEqual({ text: 'import os' });
});
