import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CodeEnd, type CodeEndRules } from '../../../services/gateway/completion/code-end.ts';
import { atOnce } from '../../../services/lib/async/turns.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import type { Grammar } from '../../../services/lib/rag/encode/grammars.ts';
import { Statements } from '../../../services/lib/rag/encode/statements.ts';

interface Case extends Partial<Omit<CodeEndRules, 'statements'>> {
  readonly output: string;
  readonly grammar?: Grammar;
}

/** What is shown of an output that comes in pieces, and how much of it had come when it was ended. */
async function ended({ output, grammar, ...rules }: Case, pieces: readonly string[] = [...output]) {
  const statements = grammar && (await Statements.load(grammar));
  const codeEnd = new CodeEnd({ stopAt: undefined, indent: undefined, before: '', after: '', ...rules, statements });
  let [text, read] = ['', 0];
  for (const piece of pieces) {
    if (codeEnd.stopped) break;
    text += atOnce(codeEnd.push(piece));
    read += piece.length;
  }
  const stopped = codeEnd.stopped;
  text += codeEnd.end();
  return { text, read: output.slice(0, read), stopped: stopped || codeEnd.stopped };
}

const shown = async (given: Case) => (await ended(given)).text;

describe('the end of a line', () => {
  const stopAt = 'line' as const;

  test('a choice ends where the line at the cursor ends, as soon as the line end has come', async () => {
    const { text, read, stopped } = await ended({ stopAt, before: 'x = ', output: 'foo(1)  \ny = 2\n' });
    expect([text, read, stopped]).toEqual(['foo(1)', 'foo(1)  \n', true]);
  });

  test('nothing is added to a line that is complete', async () => {
    expect(await shown({ stopAt, before: 'x = foo(1)', output: '\ny = 2\n' })).toBe('');
  });

  test('on a blank line, blank lines come before the line that counts', async () => {
    expect(await shown({ stopAt, before: 'if x:\n    ', output: '\n\n    y = 1\n    z\n' })).toBe('\n\n    y = 1');
  });
});

describe('the end of a statement', () => {
  const stopAt = 'statement' as const;
  const cases: [title: string, given: Omit<Case, 'output'>, statement: string, rest: string, read?: string][] = [
    [
      'a simple statement of Python',
      { grammar: 'python', before: 'def f():\n    ' },
      'return x',
      '\n    y = 1\n',
      '\n',
    ],
    ['a call over several lines', { grammar: 'python', before: 'x = ' }, 'foo(\n    1,\n    2,\n)', '\ny = 2\n', '\n'],
    ['a literal over several lines', { grammar: 'python' }, 'x = """\na (\n"""', '\ny = 2\n', '\n'],
    [
      'an if with its else',
      { grammar: 'python', before: '    ' },
      'if a:\n        b()\n\n    else:\n        c()',
      '\n    d()',
    ],
    [
      'a function with its decorator',
      { grammar: 'python' },
      '@cached\ndef f():\n    return 1',
      '\n\n\ndef g():\n    pass\n',
    ],
    [
      'a function whose head is being typed',
      { grammar: 'python', before: 'a()\ndef f(' },
      'x):\n    y()\n    z()',
      '\nb()\n',
    ],
    ['a comment and what it is about', { grammar: 'python' }, '# adds\nx += 1', '\ny = 2\n', '\n'],
    [
      'a statement of TypeScript',
      { grammar: 'typescript', before: '  const x ' },
      '= f();',
      '\n  const y = 2;\n',
      '\n',
    ],
    ['a chain of calls', { grammar: 'typescript' }, 'foo()\n  .bar()\n  .baz();', '\nnext();\n', '\n'],
    ['a line without semicolon', { grammar: 'typescript' }, 'const x = 1', '\nconst y = 2\n'],
    ['an operator at the line end', { grammar: 'typescript' }, 'x = a +\n  b;', '\ny();\n', '\n'],
    ['a function that ends with its bracket', { grammar: 'typescript' }, 'function f() {\n  g();\n}', '\nh();\n', '\n'],
    [
      'an if with an else on a line of its own',
      { grammar: 'typescript' },
      'if (a) {\n  b();\n}\nelse {\n  c();\n}',
      '\nd();\n',
    ],
    [
      'a method, which alone is no statement',
      { grammar: 'typescript', before: '  ' },
      'f(x: A): B {\n    g();\n  }',
      '\n  h() {}\n',
    ],
    ['the rest of an else branch', { grammar: 'typescript', before: '  } else {' }, '\n    b();\n  }', '\n  c();\n'],
    ['a statement of Java', { grammar: 'java', before: '    ' }, 'int x = 1;', '\n    int y;', '\n'],
    [
      'a method of C#',
      { grammar: 'c-sharp', before: '  ' },
      'public int F()\n  {\n    return 1;\n  }',
      '\n  public int G()',
    ],
    ['a statement of Go', { grammar: 'go', before: '\t' }, 'if x {\n\t\treturn\n\t}', '\n\ty()\n', '\n'],
    ['a function of Rust', { grammar: 'rust' }, "fn f<'a>(x: &'a str) {\n    g();\n}", '\nfn h() {}\n', '\n'],
    ['a statement of C++', { grammar: 'cpp' }, 'for (;;) {\n  f();\n}', '\ng();\n', '\n'],
    ['a block of Ruby, which no grammar knows', { before: '  ' }, 'if x\n    y\n  end', '\n  z\n'],
    ['a simple line of Ruby', { before: '  ' }, 'x = 1', '\n  z\n'],
    ['brackets of a language that no grammar knows', {}, 'foo(\n1,\n{ 2 }\n)', '\nbar()\n'],
  ];
  test.each(cases)('%s', async (_, given, statement, rest, read) => {
    const outcome = await ended({ stopAt, ...given, output: statement + rest });
    expect(outcome).toMatchObject({ text: statement, stopped: true });
    if (read !== undefined) expect(outcome.read).toBe(statement + read);
    // With line ends of Windows it is the same.
    const crlf = (text: string) => text.replaceAll('\n', '\r\n');
    const windows = { ...given, before: crlf(given.before ?? ''), output: crlf(statement + rest) };
    expect(await shown({ stopAt, ...windows })).toBe(crlf(statement));
  });

  test('arguments that are continued end with the call, whose beginning stands before the cursor', async () => {
    const before = 'def f():\n    foo(\n        a,\n        ';
    expect(await shown({ stopAt, grammar: 'python', before, output: 'b,\n    )\n    bar()\n' })).toBe('b,\n    )');
  });

  test('a bracket that closes the block around the cursor ends the statement before it', async () => {
    const given = { stopAt, grammar: 'typescript' as const, before: 'if (a) {\n  ' };
    expect(await shown({ ...given, output: 'b()\n}\nc()\n' })).toBe('b()');
  });
});

describe('the end of a block', () => {
  const stopAt = 'block' as const;
  const cases: [title: string, given: Omit<Case, 'output'>, block: string, rest: string][] = [
    [
      'the rest of a body in Python',
      { grammar: 'python', before: 'def f():\n    ' },
      'x = 1\n\n    if x:\n        y\n    z',
      '\n\ndef g',
    ],
    [
      'a compound statement',
      { grammar: 'python', before: '    ' },
      'for x in y:\n        z()\n\n        a()',
      '\n    b()\n',
    ],
    [
      'the rest of a body in brackets',
      { grammar: 'typescript', before: '{\n  ' },
      'a();\n  if (b) {\n    c();\n  }\n  d();',
      '\n}\ne();',
    ],
    ['a function of Go', { grammar: 'go' }, 'func f() {\n\ta()\n\n\tb()\n}', '\n\nfunc g() {}'],
    ['a paragraph at the margin', { grammar: 'python' }, 'import a\nimport b', '\n\nx = 1\n'],
    ['a body that no grammar knows', { before: 'def f\n  ' }, 'a\n  b\n  c', '\nend\n'],
  ];
  test.each(cases)('%s', async (_, given, block, rest) => {
    expect(await ended({ stopAt, ...given, output: block + rest })).toMatchObject({ text: block, stopped: true });
  });
});

describe('what stands behind the cursor', () => {
  const stopAt = 'block' as const;

  test('brackets that the rest of the line closes end the choice as they come', async () => {
    const given = { stopAt, before: 'foo(', after: ')\nbar()\n' };
    expect(await ended({ ...given, output: 'a, g(b))\nbar()' })).toMatchObject({ text: 'a, g(b)', read: 'a, g(b))' });
    expect(await shown({ ...given, before: 'foo("', after: '")\n', output: 'abc")\n' })).toBe('abc');
  });

  test('the rest of the line is not repeated at the end of the first line', async () => {
    const given = { stopAt: 'line' as const, before: 'x = ', after: ' + total\n' };
    expect(await shown({ ...given, output: 'a + total\nb' })).toBe('a');
    expect(await shown({ ...given, output: 'a + total' })).toBe('a');
    expect(await shown({ ...given, output: 'a + totals' })).toBe('a + totals');
  });

  test('the next line is not repeated, and does not leave a line end behind', async () => {
    const given = {
      stopAt,
      grammar: 'python' as const,
      before: 'def f():\n    a()\n    ',
      after: '\n\n    return x\n',
    };
    expect(await shown({ ...given, output: 'b()\n\n    return x\n    c()' })).toBe('b()');
    expect(await shown({ ...given, output: 'b()\n    return x' })).toBe('b()');
    expect(await shown({ ...given, output: 'return x\n' })).toBe('');
    expect(await shown({ ...given, output: 'b()\n    return xy\n' })).toBe('b()\n    return xy\n');
  });
});

test('n_indent ends a choice before a line that is indented less, and lets blank lines pass', async () => {
  const output = 'a:\n\n    b\n    c\n  d\n';
  expect(await ended({ indent: 4, output })).toMatchObject({ text: 'a:\n\n    b\n    c', stopped: true });
  expect(await ended({ indent: 4, output })).toMatchObject({ read: 'a:\n\n    b\n    c\n  d\n'.slice(0, -1) });
  expect(await shown({ indent: 2, output })).toBe(output);
});

const code = fc
  .array(
    fc.constantFrom(
      ...'ab({[]})"\'`\\;:,.=#@',
      ' ',
      '  ',
      '\n',
      '\n    ',
      'if x:',
      'else',
      'def f():',
      '{\n',
      '}\n',
      '/*',
    ),
    {
      maxLength: 60,
    },
  )
  .map((parts) => parts.join(''));
const rulesOf = fc.record({
  stopAt: fc.constantFrom('line' as const, 'statement' as const, 'block' as const),
  indent: fc.option(fc.integer({ min: 1, max: 4 }), { nil: undefined }),
  before: code,
  after: code,
  grammar: fc.constantFrom(undefined, 'python' as const, 'typescript' as const),
});

test('whatever comes, what is shown begins the output, and does not depend on how it is cut into pieces', async () => {
  const property = fc.asyncProperty(rulesOf, code, fc.array(fc.nat(7)), async (given, output, cuts) => {
    const whole = await ended({ ...given, output });
    expect(output.startsWith(whole.text)).toBe(true);
    if (!whole.stopped) expect(whole.text).toBe(output);
    const pieces: string[] = [];
    for (let at = 0, i = 0; at < output.length; i++) {
      const length = (cuts[i % Math.max(cuts.length, 1)] ?? 2) + 1;
      pieces.push(output.slice(at, at + length));
      at += length;
    }
    const cut = await ended({ ...given, output }, pieces);
    expect([cut.text, cut.stopped]).toEqual([whole.text, whole.stopped]);
  });
  await fc.assert(property, { numRuns: 1_000 });
});

test('a file of this project is divided into its statements, each with the comment before it', async () => {
  const source = await readFile(join(PACKAGE_ROOT, 'services/lib/text/line-ends.ts'), 'utf8');
  const statements: string[] = [];
  for (let at = 0; at < source.length; ) {
    const given = { stopAt: 'statement', grammar: 'typescript', before: source.slice(0, at) } as const;
    const { text } = await ended({ ...given, output: source.slice(at) });
    statements.push(text.trim());
    at += text.length;
    while (source[at] === '\n') at++;
  }
  expect(statements.map((text) => text.split('\n').at(-1))).toEqual([
    '}',
    'const UNITS_PER_STEP = 32_768;',
    '}',
    "export const toCrlf = (text: string) => text.replace(/(?<!\\r)\\n/g, '\\r\\n');",
    '}',
  ]);
  expect(statements[0]).toContain('*/\n\n/** Whether');
});
