import fc from 'fast-check';
import { expect, test } from 'vitest';
import { decodeHalves, encodeHalves } from '../../../services/lib/rag/store/vector-codec.ts';

const halves = (...bits: number[]) => Buffer.from(Uint16Array.from(bits).buffer);

test('widening a half gives the value of the standard', () => {
  const known = halves(0x0000, 0x3c00, 0xc000, 0x7bff, 0x0400, 0x03ff, 0x0001, 0x3555);
  expect([...decodeHalves(known)]).toEqual([0, 1, -2, 65504, 2 ** -14, 1023 * 2 ** -24, 2 ** -24, 0.333251953125]);
  expect(Object.is(decodeHalves(halves(0x8000))[0], -0)).toBe(true);
});

test('every finite half is the same after the way to fp32 and back', () => {
  const all = Uint16Array.from({ length: 65_536 }, (_, bits) => bits).filter((bits) => (bits & 0x7c00) !== 0x7c00);
  const bytes = Buffer.from(all.buffer);
  expect(encodeHalves(decodeHalves(bytes)).equals(bytes)).toBe(true);
});

test('narrowing takes the nearest half, and the even one of two equally near', () => {
  const all = Uint16Array.from({ length: 0x7c00 }, (_, bits) => bits); // 0 and the positive ones, ascending
  const values = decodeHalves(Buffer.from(all.buffer));
  fc.assert(
    fc.property(fc.float({ min: 0, max: 65504, noNaN: true }), (x) => {
      const narrowed = encodeHalves(Float32Array.of(x)).readUInt16LE();
      const error = Math.abs((values[narrowed] as number) - x);
      for (const neighbour of [narrowed - 1, narrowed + 1]) {
        const other = Math.abs((values[neighbour] ?? Number.POSITIVE_INFINITY) - x);
        expect(error).toBeLessThanOrEqual(other);
        if (error === other) expect(narrowed % 2).toBe(0);
      }
    }),
    { numRuns: 2_000 },
  );
  expect(encodeHalves(Float32Array.of(1 + 2 ** -11)).readUInt16LE()).toBe(0x3c00); // a tie
  expect(encodeHalves(Float32Array.of(1 + 3 * 2 ** -11)).readUInt16LE()).toBe(0x3c02); // a tie
  expect(encodeHalves(Float32Array.of(2 ** -25)).readUInt16LE()).toBe(0); // half of the smallest: a tie
  expect(encodeHalves(Float32Array.of(-(2 ** -30))).readUInt16LE()).toBe(0x8000);
});

test.each([65520, 1e38, Number.POSITIVE_INFINITY, Number.NaN])('the value %d is refused', (x) => {
  expect(() => encodeHalves(Float32Array.of(0, x))).toThrow(expect.objectContaining({ code: 'projector_invalid' }));
});
