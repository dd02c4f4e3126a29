import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { atOnce } from '../../services/lib/async/turns.ts';
import { characterSteps, characters, Detokenizer, StopStrings } from '../../services/lib/text/detokenizer.ts';

/** Tokens that are arbitrary stretches of bytes. Ids from 1000 on steer the model. */
function detokenize(tokens: readonly Uint8Array[], special: readonly boolean[] = []): string[] {
  const detokenizer = new Detokenizer(
    (id) => tokens[id] ?? new Uint8Array(0),
    (id) => special[id] === true,
  );
  return [...tokens.map((_, id) => detokenizer.push(id)), detokenizer.end()];
}

describe('bytes', () => {
  test('streamed text equals the whole text, however characters are split over tokens', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 4 })), (tokens) => {
        const whole = new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.concat(tokens));
        expect(detokenize(tokens).join('')).toBe(whole);
      }),
    );
  });

  test('valid text never shows a replacement character on the way', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), fc.infiniteStream(fc.integer({ min: 1, max: 3 })), (text, sizes) => {
        const bytes = Buffer.from(text);
        const tokens: Uint8Array[] = [];
        for (let at = 0; at < bytes.length; ) {
          const size = sizes.next().value!;
          tokens.push(bytes.subarray(at, at + size));
          at += size;
        }
        expect(detokenize(tokens).join('')).toBe(text);
      }),
    );
  });

  test('bytes wait until their character is complete, and become a replacement character at the end', () => {
    const euro = Buffer.from('€');
    expect(detokenize([euro.subarray(0, 1), euro.subarray(1, 2), euro.subarray(2)])).toEqual(['', '', '€', '']);
    expect(detokenize([Buffer.from('a'), euro.subarray(0, 2)])).toEqual(['a', '', '\ufffd']);
  });

  test('a piece says whether it begins with a character that the tokens before did not finish', () => {
    const leftovers = (...tokens: number[][]) => {
      const detokenizer = new Detokenizer(
        (id) => Uint8Array.from(tokens[id]!),
        () => false,
      );
      return tokens.map((_, id) => {
        detokenizer.push(id);
        return detokenizer.leftover;
      });
    };
    const [a, smile] = [[0x61], [0xf0, 0x9f, 0x98, 0x80]];
    expect(leftovers(smile.slice(0, 2), a)).toEqual([0, 1]);
    expect(leftovers(smile.slice(0, 2), [...a, ...a], a)).toEqual([0, 1, 0]);
    expect(leftovers(smile.slice(0, 2), smile.slice(2), a)).toEqual([0, 0, 0]);
    expect(leftovers(smile.slice(0, 1), [...smile.slice(1, 2), ...a])).toEqual([0, 0]);
    expect(leftovers([0xe0], [0x80])).toEqual([0, 1]);
    // A replacement character that the model itself put out is a character like others.
    expect(leftovers([0xef, 0xbf], [0xbd], [0xef, 0xbf, 0xbd])).toEqual([0, 0, 0]);
  });

  test('the bytes of skipped tokens are left out', () => {
    expect(detokenize([Buffer.from('a'), Buffer.from('<|x|>'), Buffer.from('b')], [false, true]).join('')).toBe('ab');
  });
});

const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 40 });
const stops = fc.array(fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 5 }), {
  maxLength: 4,
});

/** The definition, character by character: stop as soon as the text ends with a stop string. */
function cutSimply(text: string, stops: readonly string[]): string {
  for (let end = 1; end <= text.length; end++) {
    const found = stops.filter((stop) => text.slice(0, end).endsWith(stop));
    if (found.length > 0) return text.slice(0, end - Math.max(...found.map((stop) => stop.length)));
  }
  return text;
}

describe('stop strings', () => {
  test('stop strings cut the same text, however it is split', () => {
    fc.assert(
      fc.property(
        letters,
        stops,
        fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 41, maxLength: 41 }),
        (text, stops, sizes) => {
          const strings = new StopStrings(stops);
          let out = '';
          for (let at = 0, i = 0; at < text.length; i++) {
            out += strings.push(text.slice(at, at + sizes[i]!));
            at += sizes[i]!;
            expect(cutSimply(text, stops).startsWith(out)).toBe(true);
          }
          out += strings.end();
          expect(out).toBe(cutSimply(text, stops));
          expect(strings.stopped).toBe(stops.some((stop) => text.includes(stop)));
        },
      ),
      { numRuns: 1000 },
    );
  });

  test('text is held back only as far as a stop string may begin in it', () => {
    const strings = new StopStrings(['\n\n']);
    expect(strings.push('a\n')).toBe('a');
    expect(strings.push('b\n')).toBe('\nb');
    expect(strings.push('\nc')).toBe('');
    expect(strings.stopped).toBe(true);
    expect(strings.push('more')).toBe('');
    expect(strings.end()).toBe('');
  });
});

test('characters are the same counted in steps, wherever a long text is divided', () => {
  const parts = fc.array(fc.constantFrom('a', '\n', 'é', '漢', '😀', '\ud83d', '\ude00'), { maxLength: 40 });
  fc.assert(
    fc.property(parts, fc.integer({ min: 16_370, max: 16_390 }), (tail, length) => {
      const text = 'a'.repeat(length) + tail.join('');
      expect(atOnce(characterSteps(text))).toBe(characters(text));
    }),
  );
});

test('no step of counting characters takes more than a small part of a long text', () => {
  expect([...characterSteps('x'.repeat(1_000_000))].length).toBeGreaterThan(50);
});
