/** The sequences of syntax trees in UniXcoder's form. */
import TreeSitter from '@vscode/tree-sitter-wasm';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { SyntaxTrees } from '../../../services/lib/rag/encode/syntax-tree.ts';

let trees: SyntaxTrees;
beforeAll(async () => {
  trees = await SyntaxTrees.load();
});
afterAll(() => trees.dispose());

/** The sequence with its marks shortened to `<type` and `type>`. */
const spelled = (path: string, code: string) =>
  trees
    .sequence(path, code)
    ?.map((token) =>
      'text' in token ? token.text : token.mark.replace(/^AST#(.*)#Left$/, '<$1').replace(/^AST#(.*)#Right$/, '$1>'),
    )
    .join(' ');
const texts = (path: string, code: string) =>
  trees.sequence(path, code)?.flatMap((token) => ('text' in token ? [token.text] : []));

test('inner nodes stand around their children, and an only child stands for its parent', () => {
  expect(spelled('a.py', 'x = f(1)')).toBe(
    '<assignment x = <call f <argument_list ( 1 ) argument_list> call> assignment>',
  );
  expect(trees.sequence('a.py', 'x = 1')?.[0]).toEqual({ mark: 'AST#assignment#Left' });
});

test('a string is one leaf, whatever it contains', () => {
  expect(texts('a.py', 's = "# no comment" + f"{x} // no"')).toEqual(['s', '=', '"# no comment"', '+', 'f"{x} // no"']);
  expect(texts('a.ts', "const s = '// no comment'")).toEqual(['const', 's', '=', "'// no comment'"]);
});

test('comments and docstrings are left out', () => {
  const code = 'def f(a):\n    """Doc # string."""\n    # gone\n    return a  # gone too';
  expect(texts('a.py', code)).toEqual(['def', 'f', '(', 'a', ')', ':', 'return', 'a']);
  expect(texts('A.java', '/** gone */ class A { int x; } // gone')).toEqual(['class', 'A', '{', 'int', 'x', ';', '}']);
});

test('characters beyond ASCII shift no positions', () => {
  expect(texts('a.py', 'größe = "日本"; x = 😀 if 0 else größe')?.slice(0, 3)).toEqual(['größe', '=', '"日本"']);
  expect(texts('a.js', '/* 😀 */ naïve(x)')).toEqual(['naïve', '(', 'x', ')']);
});

test('a chunk from within a block parses like one at the margin', () => {
  const inner = '        x = 1\n        if x:\n            y = 2';
  expect(spelled('a.py', inner)).toBe(spelled('a.py', 'x = 1\nif x:\n    y = 2'));
  expect(spelled('a.py', inner)).not.toContain('ERROR');
});

test('deeply nested code is read to its end', () => {
  expect(texts('a.py', `x = ${'a + '.repeat(145)}b`)).toHaveLength(293);
  const brackets = `x = ${'['.repeat(145)}1${']'.repeat(145)}`;
  expect(spelled('a.py', brackets)?.endsWith(`1 ${'] list> '.repeat(145)}assignment>`)).toBe(true);
  // There is an error deep inside.
  expect(texts('a.js', `x = ${'f('.repeat(70)}1 $$ 2${')'.repeat(70)}`)?.[0]).toBe('x');
});

describe('every language', () => {
  test.each([
    ['a.py', 'def f(): pass', 'function_definition'],
    ['a.ts', 'const f = (a: number): void => {};', 'lexical_declaration'],
    ['a.tsx', 'const e = <b>{x}</b>;', 'jsx_element'],
    ['a.js', 'function f() { return 1 }', 'function_declaration'],
    ['A.java', 'class A { void f() {} }', 'class_declaration'],
    ['a.go', 'package a\nfunc f(x int) { g(x) }', 'function_declaration'],
    ['a.rs', 'fn f(x: u8) -> u8 { x }', 'function_item'],
    ['a.c', 'int f(struct a *p) { return p->x; }', 'function_definition'],
    ['a.hpp', 'template <class T> T f(T x) { return x; }', 'template_declaration'],
    ['A.cs', 'class A { int F() => 1; }', 'class_declaration'],
  ])('%s is parsed by its grammar', (path, code, node) => {
    expect(spelled(path, code)).toContain(`<${node}`);
    expect(spelled(path, code)).not.toContain('ERROR');
  });
});

test('code without a syntax tree is recognised', () => {
  expect(trees.sequence('notes.md', 'words')).toBeUndefined();
  expect(trees.sequence('no-ending', 'x = 1')).toBeUndefined();
  expect(trees.sequence('a.py', ')]} ((( this is = no ( python')).toBeUndefined();
  expect(trees.sequence('a.py', '')).toBeUndefined();
  expect(trees.sequence('a.java', '// only\n// comments')).toBeUndefined();
});

describe('texts that are not code', () => {
  const ordinary = 'x = f(1)';

  test.each([
    ['a.rs', ')-'.repeat(145)],
    ['a.cs', ')&'.repeat(145)],
    ['a.java', ')-'.repeat(145)],
  ])('a parse is given up after so many steps, and the next text is parsed as usual (%s)', (path, code) => {
    const before = trees.sequence('a.py', ordinary);
    expect(trees.sequence(path, code)).toBeUndefined();
    expect(trees.sequence('a.py', ordinary)).toEqual(before);
    expect(trees.sequence(path, 'f(x);')).toBeDefined();
  });

  // One step of the parser took 165 ms of the first one, and 20 ms more for each further hundred of marks.
  test.each([
    ['a.py', '/*\n'],
    ['a.py', '*\n^\n'],
    ['a.py', '*\n/* x */\n'],
    ['a.cs', '<a'],
    ['a.java', 'not\n=>\n'],
    ['a.cpp', '=\n%\n/a\n'],
    ['a.tsx', '/*\n'],
  ])('nonsense that parsers take long for is not given to them (%s: %j)', (path, part) => {
    const parse = vi.spyOn(TreeSitter.Parser.prototype, 'parse');
    onTestFinished(() => parse.mockRestore());
    const marks = 1_000;
    expect(trees.sequence(path, part.repeat(Math.floor(2_000 / part.length)))).toBeUndefined();
    expect(parse).not.toHaveBeenCalled();
    expect(trees.sequence('a.py', `x = [${'1, '.repeat(140)}]`)).toBeDefined();
    expect(parse).toHaveBeenCalledTimes(1);
    expect(trees.sequence('a.py', `x = [${'1, '.repeat(marks)}]`)).toBeUndefined();
    expect(parse).toHaveBeenCalledTimes(1);
  });

  test.each([
    ['a.cpp', '(a)*'.repeat(2_560)],
    ['a.cs', '(a)-'.repeat(4_000)],
    ['a.java', '(a)-'.repeat(4_000)],
  ])('hostile text does not overrun the memory of all parsers (%s)', (path, code) => {
    const before = trees.sequence('a.py', ordinary);
    expect(trees.sequence(path, code)).toBeUndefined();
    expect(trees.sequence('a.py', ordinary)).toEqual(before);
  });
});
