import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { atOnce } from '../../services/lib/async/turns.ts';
import { JsonError, type JsonLimits, jsonSteps } from '../../services/lib/text/json-reader.ts';

const ENOUGH: JsonLimits = { depth: 100, containers: 1e6, strings: 1e6, names: 1e6, numbers: 1e6 };
const read = (text: string, limits: Partial<JsonLimits> = {}) =>
  atOnce(jsonSteps(Buffer.from(text), { ...ENOUGH, ...limits }));

/** The value, or undefined if it is not JSON. */
const outcome = (parse: () => unknown) => {
  try {
    return { value: parse() };
  } catch {
    return undefined;
  }
};

describe('JSON in steps', () => {
  test('JSON of any kind has the value that JSON.parse gives it', () => {
    const json = fc.tuple(fc.jsonValue({ maxDepth: 6 }), fc.constantFrom(undefined, 1, '\t'));
    fc.assert(
      fc.property(json, ([value, space]) => {
        const text = JSON.stringify(value, undefined, space);
        expect(read(text)).toStrictEqual(JSON.parse(text));
      }),
    );
  });

  test('damaged JSON is refused exactly where JSON.parse refuses it', () => {
    const noise = fc.constantFrom(
      ...'[]{}:,"\\ \n01-.eEtrun/',
      'null',
      '\\u12',
      '\\ud800',
      '1.',
      '-',
      '\u0001',
      '__proto__',
    );
    const damaged = fc
      .tuple(fc.jsonValue({ maxDepth: 3 }), fc.nat(), fc.array(noise, { maxLength: 3 }), fc.nat(2))
      .map(([value, at, added, removed]) => {
        const text = JSON.stringify(value);
        const place = at % (text.length + 1);
        return text.slice(0, place) + added.join('') + text.slice(place + removed);
      });
    const made = fc.array(noise, { maxLength: 8 }).map((parts) => parts.join(''));
    fc.assert(
      fc.property(fc.oneof(damaged, made), (text) => {
        expect(outcome(() => read(text))).toStrictEqual(outcome(() => JSON.parse(text)));
      }),
      { numRuns: 3_000 },
    );
  });

  test('a long string is the same wherever its pieces are cut', () => {
    const part = fc.constantFrom('\\\\', '\\"', '\\u00e9', '\\ud83d\\ude00', '\\n', 'x', '😀', '漢', 'u', '\\\\u0041');
    fc.assert(
      fc.property(fc.array(part, { minLength: 1, maxLength: 12 }), fc.nat(7), (parts, shift) => {
        const inner = 'y'.repeat(shift) + parts.join('').repeat(Math.ceil(80_000 / parts.join('').length));
        expect(read(`{"a":"${inner}"}`)).toEqual(JSON.parse(`{"a":"${inner}"}`));
      }),
      { numRuns: 40 },
    );
  });

  test('names like __proto__ are plain fields, and of two fields of one name the later counts', () => {
    const text = '{"__proto__":{"x":1},"a":1,"a":2,"constructor":3,"10":4,"9":5}';
    const value = read(text) as object;
    expect(Object.entries(value)).toEqual(Object.entries(JSON.parse(text)));
    expect(Object.getPrototypeOf(value)).toBe(Object.prototype);
  });

  test('a byte order mark is left out, and bytes that are not UTF-8 are refused', () => {
    expect(read('\ufeff[1]')).toEqual([1]);
    const bytes = Buffer.concat([Buffer.from(`"${'漢'.repeat(50_000)}`), Buffer.from([0xff, 0x22])]);
    expect(() => atOnce(jsonSteps(bytes, ENOUGH))).toThrow(/not valid UTF-8/);
  });

  test.each([
    ['depth', '[[[]]]', { depth: 2 }, /nested more than 2 deep/],
    ['containers', '[[],{},[]]', { containers: 3 }, /more than 3 arrays and objects/],
    ['strings', '["","",""]', { strings: 2 }, /more than 2 strings/],
    ['names', '{"a":1,"b":{"c":1}}', { names: 2 }, /more than 2 names/],
    ['numbers', '[1,2,3]', { numbers: 2 }, /more than 2 numbers/],
  ] as const)('%s beyond the limit are refused before the rest is read', (name, text, limits, message) => {
    expect(() => read(`${text.slice(0, -1)} rubbish`, limits)).toThrow(message);
    expect(read(text, { [name]: Object.values(limits)[0]! + 1 })).toEqual(JSON.parse(text));
  });

  test('brackets, quotes and commas within a string count for nothing', () => {
    const text = JSON.stringify({ a: '[{"\\",:1'.repeat(10_000) });
    expect(read(text, { depth: 1, containers: 1, strings: 1, names: 1, numbers: 0 })).toEqual(JSON.parse(text));
  });

  test.each([
    ['a string of escapes', `["${'\\n'.repeat(500_000)}"]`, 15],
    ['a string of escaped quotes', `["${'\\"'.repeat(500_000)}"]`, 500],
    ['many numbers', `[${'1,'.repeat(500_000)}1]`, 480],
    ['many arrays', `[${'[],'.repeat(300_000)}1]`, 290],
  ])('the work of megabytes is divided into many steps: %s', (_, text, least) => {
    const steps = jsonSteps(Buffer.from(text), ENOUGH);
    let count = 0;
    while (!steps.next().done) count++;
    expect(count).toBeGreaterThan(least);
  });

  test('an error says what is wrong and where', () => {
    expect(() => read('{"a" 1}')).toThrow(new JsonError('unexpected "1" at position 5'));
    expect(() => read('{"a":')).toThrow(new JsonError('it ends too early'));
    expect(() => read('["abc')).toThrow(new JsonError('a string that begins at position 1 does not end'));
    expect(() => read('[1.]')).toThrow(JsonError);
  });
});
