import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { insertionOf, promptOf, suffixOf } from '../../services/lsp/query.ts';

describe('the text that is sent', () => {
  it('a document of usual size is sent whole, with LF', () => {
    expect(promptOf('a\r\nb\n')).toBe('a\nb\n');
    expect(suffixOf('\r\nc')).toBe('\nc');
  });

  it('of a long document, the text near the cursor is sent, from the beginning of a line', () => {
    const line = (i: number) => `line ${i}\n`;
    const text = Array.from({ length: 40_000 }, (_, i) => line(i)).join('');
    const prompt = promptOf(text);
    expect(prompt.length).toBeGreaterThan(64 * 1024);
    expect(prompt.length).toBeLessThanOrEqual(96 * 1024);
    expect(text.endsWith(`\n${prompt}`)).toBe(true);
    const suffix = suffixOf(text);
    expect(suffix.length).toBe(32 * 1024);
    expect(text.startsWith(suffix)).toBe(true);
  });

  it('while a long document grows, its prompt grows at its end: the first character stays for many keystrokes', () => {
    const text = 'some words\n'.repeat(20_000);
    const first = promptOf(text);
    let changes = 0;
    let before = first;
    for (let typed = 1; typed <= 1_000; typed++) {
      const prompt = promptOf(text + 'x'.repeat(typed));
      if (!prompt.startsWith(before)) changes++;
      before = prompt;
    }
    expect(changes).toBeLessThanOrEqual(1);
  });

  it('a line without end is cut between two characters', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 40 }), (shift) => {
        const text = 'a'.repeat(shift) + '😀'.repeat(80 * 1024);
        for (const sent of [promptOf(text), suffixOf(text)]) {
          expect(sent.length).toBeGreaterThan(16 * 1024);
          expect(Buffer.from(sent).toString()).toBe(sent);
        }
      }),
    );
  });
});

it('a completion is inserted with the line ends of its document, and without white space at its end', () => {
  expect(insertionOf('  a\nb\r\n \n', '\r\n')).toBe('  a\r\nb');
  expect(insertionOf(' \n\t', '\n')).toBe('');
});
