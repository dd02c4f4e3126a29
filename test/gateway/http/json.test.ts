import { expect, test } from 'vitest';
import { jsonPieces, LazyList, toJson } from '../../../services/gateway/http/json.ts';

const LONG = `${'x'.repeat(65_535)}😀"\\\u2028${'é'.repeat(200_000)}`;

test.each([
  [{}],
  [[]],
  [null],
  [''],
  [{ a: undefined, b: [1, null, 'x', { c: [] }], 'd"\u2029': true }],
  [new LazyList(() => [])],
  [{ list: new LazyList(() => [1, null, { a: 'b' }]), text: LONG }],
  [Array.from({ length: 100_000 }, (_, i) => i)],
])('JSON in pieces is the same JSON: %#', (value) => {
  const pieces = [...jsonPieces(value)];
  expect(pieces.join('')).toBe(toJson(value));
  expect(Math.max(...pieces.map(({ length }) => length))).toBeLessThan(200_000);
});

test('items of a lazy list are made as they are written', () => {
  let made = 0;
  const list = new LazyList(function* () {
    for (; made < 1_000_000; made++) yield 'x'.repeat(1_000);
  });
  const [first] = jsonPieces(list);
  expect(first!.length).toBeGreaterThan(60_000);
  expect(made).toBeLessThan(100);
});
