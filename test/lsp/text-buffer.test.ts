import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { POSITION_ENCODINGS, type PositionEncoding, TextBuffer } from '../../services/lsp/text-buffer.ts';

/** Texts with all line ends, and characters of 1 to 4 bytes. */
const texts = fc.array(fc.constantFrom('a', 'ä', '€', '😀', '\n', '\r\n', '\r', '\t')).map((parts) => parts.join(''));
const encodings = fc.constantFrom(...POSITION_ENCODINGS);

const WIDTH: Record<PositionEncoding, (text: string) => number> = {
  'utf-8': (text) => Buffer.byteLength(text),
  'utf-16': (text) => text.length,
  'utf-32': (text) => [...text].length,
};

describe('positions', () => {
  it('every place between two characters has a position that leads back to it', () => {
    fc.assert(
      fc.property(texts, encodings, (text, encoding) => {
        const buffer = new TextBuffer(text, encoding);
        let offset = 0;
        for (const character of [...text, '']) {
          const lines = text.slice(0, offset).split(/\r\n|\r|\n/);
          const isWithinLineEnd = text[offset - 1] === '\r' && text[offset] === '\n';
          if (!isWithinLineEnd) {
            const position = { line: lines.length - 1, character: WIDTH[encoding](lines.at(-1)!) };
            expect(buffer.positionAt(offset)).toEqual(position);
            expect(buffer.offsetAt(position)).toBe(offset);
          }
          offset += character.length;
        }
      }),
      { numRuns: 2_000 },
    );
  });

  it('a position behind the end of its line is that end, and one behind the last line the end of the text', () => {
    const buffer = new TextBuffer('ab\r\ncd', 'utf-16');
    expect(buffer.offsetAt({ line: 0, character: 99 })).toBe(2);
    expect(buffer.offsetAt({ line: 9, character: 0 })).toBe(6);
    expect(buffer.offsetAt({ line: -1, character: 3 })).toBe(0);
    expect(buffer.positionAt(3)).toEqual({ line: 0, character: 2 });
  });

  it('the middle of a character is its beginning', () => {
    expect(new TextBuffer('a😀b', 'utf-16').offsetAt({ line: 0, character: 2 })).toBe(1);
    for (const character of [2, 3, 4]) {
      expect(new TextBuffer('a😀b', 'utf-8').offsetAt({ line: 0, character })).toBe(1);
    }
  });
});

describe('changes', () => {
  it('changes are applied one after the other, and one without a range replaces the text', () => {
    const buffer = new TextBuffer('one\ntwo\n', 'utf-16');
    const at = (line: number, from: number, to: number) => ({
      start: { line, character: from },
      end: { line, character: to },
    });
    buffer.apply([
      { range: at(0, 3, 3), text: '\nnew' },
      { range: at(1, 0, 3), text: 'old' },
    ]);
    expect(buffer.text).toBe('one\nold\ntwo\n');
    buffer.apply([
      { text: 'x' },
      { range: { start: { line: 0, character: 1 }, end: { line: 0, character: 0 } }, text: 'y' },
    ]);
    expect(buffer.text).toBe('y');
  });

  it('the line end of a text is that of its first line', () => {
    const lineEnds = ['', 'a', 'a\nb\r\n', 'a\r\nb\n', 'a\rb\r\n'].map((text) => new TextBuffer(text, 'utf-8').lineEnd);
    expect(lineEnds).toEqual(['\n', '\n', '\n', '\r\n', '\r\n']);
  });
});
