/** However the name of a file is spelled, it has one form, and rules see no other. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { normalisePath, resolvePath } from '../../../services/lib/rag/store/path-form.ts';

const COMPOSED = 'src/caf\u00e9.py';

describe('the normal form of a path', () => {
  test.each([
    ['src/main.py', 'src/main.py'],
    ['src\\main.py', 'src/main.py'],
    ['.\\src\\main.py', 'src/main.py'],
    ['./src/./main.py', 'src/main.py'],
    ['/src/main.py', 'src/main.py'],
    ['//src///main.py//', 'src/main.py'],
    ['src\\\\main.py\\', 'src/main.py'],
    ['C:\\src\\main.py', 'src/main.py'],
    ['c:/src/main.py', 'src/main.py'],
    ['/C:/src/main.py', 'src/main.py'],
    ['\\\\?\\C:\\src\\main.py', 'src/main.py'],
    ['\\\\server\\share\\main.py', 'server/share/main.py'],
    ['file:///src/main.py', 'src/main.py'],
    ['FILE:///src/main.py', 'src/main.py'],
    ['file:/src/main.py', 'src/main.py'],
    ['file://localhost/src/main.py', 'src/main.py'],
    ['file://server/share/main.py', 'server/share/main.py'],
    ['file:///c%3A/src/my%20main.py', 'src/my main.py'],
    ['file:///src%5Cmain.py', 'src/main.py'],
    ['file:///src/main.py#L10', 'src/main.py'],
    ['file:///src/100%25.py', 'src/100%.py'],
    ['src/100%25.py', 'src/100%25.py'],
    ['src/cafe\u0301.py', COMPOSED],
    ['file:///src/cafe%CC%81.py', COMPOSED],
    ['conf\\.env', 'conf/.env'],
    ['a..b/...c', 'a..b/...c'],
    ['file', 'file'],
    ['a:b.py', 'a:b.py'],
    [' spaced .py ', ' spaced .py '],
  ])('%j is %j', (spelled, normal) => {
    expect(normalisePath(spelled)).toBe(normal);
  });

  test.each([
    '',
    '.',
    './',
    '/',
    '\\',
    'C:\\',
    'C:',
    '..',
    '../a.py',
    'a/../b.py',
    'a\\..\\b.py',
    'a/..',
    'file:///a/%2e%2e/b.py',
    'file:///a/..%5cb.py',
    'file:///',
    'file:///%ff.py',
    'file:///%.py',
    'a\0.py',
    'file:///a%00.py',
    'a\n.py',
    'a\r',
    'a\t.py',
    'a\u007f.py',
    'a\u0085.py',
    'file:///file:///a.py',
    'C:/D:/a.py',
    'a\ud800.py',
    'file:///a\udc00.py',
  ])('%j has no normal form', (spelled) => {
    expect(normalisePath(spelled)).toBeUndefined();
  });

  const odd = fc.constantFrom('\\', '/', '.', '..', 'C:', 'file:', '//', '%2e', '%2f', '%5c', '%00', '?', 'e\u0301');
  const spelling = fc
    .array(fc.oneof({ weight: 3, arbitrary: odd }, fc.string({ unit: 'binary', maxLength: 4 })), { maxLength: 12 })
    .map((parts) => parts.join(''));

  test('whatever comes in, a normal form is relative, stays inside, is composed, and is its own normal form', () => {
    fc.assert(
      fc.property(spelling, (text) => {
        const normal = normalisePath(text);
        if (normal === undefined) return;
        expect(normalisePath(normal)).toBe(normal);
        expect(normal).not.toMatch(/\\|\p{Cc}/u);
        expect(normal.normalize('NFC')).toBe(normal);
        expect(normal.split('/').filter((part) => ['', '.', '..'].includes(part))).toEqual([]);
      }),
      { numRuns: 2_000 },
    );
  });

  test('all spellings of one file have one normal form', () => {
    const name = fc.stringMatching(/^[a-z\u00e9%# ]{1,8}$/);
    fc.assert(
      fc.property(fc.array(name, { minLength: 1, maxLength: 5 }), (names) => {
        const plain = names.join('/');
        const url = names.map(encodeURIComponent);
        const spellings = [
          plain,
          plain.normalize('NFD'),
          `./${plain}`,
          `/${plain}`,
          `${plain}/`,
          names.join('\\'),
          `C:\\${names.join('\\')}`,
          names.join('//'),
          `file:///${url.join('/')}`,
          `file:///${encodeURIComponent(plain.normalize('NFD'))}`,
          `file:///c%3A/${url.join('/')}`,
        ];
        expect(new Set(spellings.map(normalisePath))).toEqual(new Set([plain]));
      }),
    );
  });
});

test('a client’s own path may lead up again, but not out of its root', () => {
  for (const [spelled, resolved] of [
    ['src/../main.py', 'main.py'],
    ['file:///src/lib/..%5C..//main.py', 'main.py'],
    ['file://localhost/gone/../main.py', 'main.py'],
    ['C:\\src\\..\\main.py', 'main.py'],
    ['src/main.py', 'src/main.py'],
    ['../main.py', undefined],
    ['C:\\..\\main.py', undefined],
    ['src/..', undefined],
    ['a\0b', undefined],
  ] as const) {
    expect([spelled, resolvePath(spelled)]).toEqual([spelled, resolved]);
  }
  const part = fc.constantFrom('a', 'b.py', '..', '.', '', 'é', '100%');
  const property = fc.property(fc.array(part, { maxLength: 8 }), (parts) => {
    const path = resolvePath(parts.join('/'));
    if (path === undefined) return;
    expect(normalisePath(path)).toBe(path); // a form that rules and stores know
    expect(resolvePath(`/gone/../${parts.join('\\')}`)).toBe(path);
  });
  fc.assert(property);
});
