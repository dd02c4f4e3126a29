import fc from 'fast-check';
import { expect, test } from 'vitest';
import { atOnce } from '../../services/lib/async/turns.ts';
import { CrlfWriter, lfSteps, toCrlf, usesCrlf } from '../../services/lib/text/line-ends.ts';

test.each([
  ['a\r\nb', '', true],
  ['a\nb', 'c\r\n', false],
  ['a\r\nb\n', '', false],
  ['a\nb\r\nc', '\n', true],
  ['no line end', '\r\nafter', true],
  ['no line end', 'x\nafter', false],
  ['no line end', '', false],
  ['\n', '', false],
  ['between\r', '\nthem', true],
])('the line end nearest to the cursor decides: %j | %j', (before, after, crlf) => {
  expect(usesCrlf(before, after)).toBe(crlf);
});

test('line ends become CRLF, however the text is cut into pieces, and those that are stay as they are', () => {
  const pieces = fc.array(fc.string({ unit: fc.constantFrom('a', '\r', '\n'), maxLength: 4 }), { maxLength: 8 });
  fc.assert(
    fc.property(pieces, (pieces) => {
      const writer = new CrlfWriter('');
      const whole = pieces.join('');
      const text = pieces.map((piece) => writer.push(piece)).join('');
      expect(text).toBe(toCrlf(whole));
      expect(text.replaceAll('\r\n', '\n')).toBe(whole.replaceAll('\r\n', '\n'));
      expect(text.replaceAll('\r\n', '')).not.toContain('\n');
    }),
  );
  expect(new CrlfWriter('a\r').push('\nb\n')).toBe('\nb\r\n');
});

test('line ends become LF, wherever a long text is divided, and it is divided', () => {
  const filler = fc.constantFrom(32_765, 32_766, 32_767, 32_768, 65_535);
  const ends = fc.string({ unit: fc.constantFrom('a', '\r', '\n'), maxLength: 6 });
  fc.assert(
    fc.property(ends, filler, ends, (before, units, after) => {
      const text = `${before}${'x'.repeat(units)}${after}${'\r\n'.repeat(20_000)}`;
      expect(atOnce(lfSteps(text))).toBe(text.replaceAll('\r\n', '\n'));
    }),
  );
  expect([...lfSteps('\r\n'.repeat(100_000))]).toHaveLength(6);
});
