import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { chunkFiles } from '../../../bench/quality/contexts.ts';

describe('chunks as files of an index', () => {
  it('keep their paths as far as an indexer takes them, and never meet the file with the gap', () => {
    const chunks = ['src/a.py', 'src/a.py', '../.hidden/b.py', 'node_modules/c.js', '', 'cart.py', 'x'].map(
      (path, i) => ({ path, text: i === 6 ? ' \n' : `text ${i}` }),
    );
    expect([...chunkFiles(chunks, 'cart.py').keys()]).toEqual([
      'src/a.py',
      'src/a.2.py',
      'hidden/b.py',
      'node-modules/c.js',
      'chunk.py',
      'cart.2.py',
    ]);
  });

  it('there are as many files as chunks with text, whatever their paths', () => {
    const part = fc.oneof(fc.constantFrom('..', '.', '', 'a', 'node_modules', '.git', 'b.py'), fc.string());
    const path = fc.array(part, { maxLength: 4 }).map((parts) => parts.join('/'));
    fc.assert(
      fc.property(fc.array(fc.record({ path, text: fc.string() })), path, (chunks, current) => {
        const files = chunkFiles(chunks, current);
        expect([...files.values()].sort()).toEqual(
          chunks
            .map(({ text }) => text)
            .filter((text) => text.trim() !== '')
            .sort(),
        );
        for (const name of files.keys()) expect(name).not.toMatch(/(^|\/)(\.|node_modules(\/|$))|^\/|^$/);
        expect(files.has(current)).toBe(false);
      }),
    );
  });
});
