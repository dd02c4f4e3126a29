/** KV caches in fewer bytes: how far the values may be off, and that the whole hand-over carries each form. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { KvReceiver, KvSender } from '../../services/lib/kv/handoff.ts';
import { rowCount } from '../../services/lib/kv/layout.ts';
import {
  decodeRow,
  encodeRow,
  readWireType,
  vectorBytes,
  WIRE_TYPES,
  type WireType,
} from '../../services/lib/kv/wire.ts';
import { packed, row } from '../support/kv-rows.ts';

const HEAD_DIM = 8;
const LARGEST_HALF = 65504;
/** With larger values a step times 127 may exceed the largest float. */
const LARGEST = Math.fround(1e38);

/** Encodes and decodes a row. */
function carried(type: WireType, row: Float32Array): Float32Array {
  const bytes = new Uint8Array((row.length / HEAD_DIM) * vectorBytes(type, HEAD_DIM));
  encodeRow(type, row, HEAD_DIM, bytes);
  // Messages may lie at odd offsets.
  const message = new Uint8Array(bytes.length + 1);
  message.set(bytes, 1);
  const back = new Float32Array(row.length);
  decodeRow(type, message.subarray(1), HEAD_DIM, back);
  return back;
}

const rows = (value: fc.Arbitrary<number>) =>
  fc
    .array(fc.array(value, { minLength: HEAD_DIM, maxLength: HEAD_DIM }), { minLength: 1, maxLength: 6 })
    .map((vectors) => Float32Array.from(vectors.flat()));
const finite = fc.float({ noNaN: true, noDefaultInfinity: true });

describe('float32', () => {
  test('float32 is exact, including the sign of zero', () => {
    fc.assert(
      fc.property(rows(finite), (row) => {
        expect(carried('float32', row)).toEqual(row);
      }),
    );
  });
});

describe('float16', () => {
  test('float16 is within half of its last place and saturates', () => {
    fc.assert(
      fc.property(rows(finite), (row) => {
        for (const [i, got] of carried('float16', row).entries()) {
          const clamped = Math.max(-LARGEST_HALF, Math.min(LARGEST_HALF, row[i]!));
          const bound = Math.max(Math.abs(clamped) * 2 ** -11, 2 ** -25);
          expect(Math.abs(got - clamped)).toBeLessThanOrEqual(bound);
        }
      }),
    );
  });

  test('float16 leaves values that are halves unchanged', () => {
    const halves = Uint16Array.from({ length: 1 << 16 }, (_, half) => half).filter(
      (half) => (half & 0x7c00) !== 0x7c00,
    );
    const values = new Float32Array(halves.length);
    decodeRow('float16', new Uint8Array(halves.buffer), HEAD_DIM, values);
    const back = new Uint16Array(halves.length);
    encodeRow('float16', values, HEAD_DIM, new Uint8Array(back.buffer));
    expect(back).toEqual(halves);
  });

  test.each([
    ['ties to even, down', 1 + 2 ** -11, 1],
    ['ties to even, up', 1 + 3 * 2 ** -11, 1 + 2 ** -9],
    ['a value up into the next power of two', 2 - 2 ** -12, 2],
    ['the largest value that does not overflow', LARGEST_HALF, LARGEST_HALF],
    ['a value beyond the largest', 65535, LARGEST_HALF],
    ['half of the smallest subnormal', 2 ** -25, 0],
    ['a little more than that', 1.5 * 2 ** -25, 2 ** -24],
    ['the largest subnormal, rounded up', 2 ** -14 - 2 ** -26, 2 ** -14],
    ['infinity', Number.POSITIVE_INFINITY, LARGEST_HALF],
    ['not a number', Number.NaN, Number.NaN],
  ])('float16 rounds %s', (_, value, expected) => {
    const row = new Float32Array(HEAD_DIM).fill(value);
    expect(carried('float16', row)).toEqual(new Float32Array(HEAD_DIM).fill(expected));
    expect(
      carried(
        'float16',
        row.map((x) => -x),
      ),
    ).toEqual(new Float32Array(HEAD_DIM).fill(-expected));
  });
});

describe('int8', () => {
  test("int8 is within half a step, a 127th of the vector's largest value", () => {
    fc.assert(
      fc.property(rows(fc.float({ noNaN: true, min: -LARGEST, max: LARGEST })), (row) => {
        const back = carried('int8', row);
        for (let from = 0; from < row.length; from += HEAD_DIM) {
          const largest = row.subarray(from, from + HEAD_DIM).reduce((most, x) => Math.max(most, Math.abs(x)), 0);
          // Steps below the smallest float are rounded to one, or to none.
          const bound = (largest / 254) * (1 + 1e-5) + 127 * 2 ** -149;
          for (let i = from; i < from + HEAD_DIM; i++) expect(Math.abs(back[i]! - row[i]!)).toBeLessThanOrEqual(bound);
        }
      }),
    );
  });

  test('a vector of zeros stays zero as int8', () => {
    expect(carried('int8', new Float32Array(HEAD_DIM))).toEqual(new Float32Array(HEAD_DIM));
  });
});

describe('the hand-over', () => {
  const layout = { layers: 3, kvHeads: 2, headDim: HEAD_DIM };
  const CAPACITY = 300;
  function filled(): CpuKvStore {
    const store = new CpuKvStore(layout, 2, CAPACITY);
    for (let index = 0; index < rowCount(layout); index++) {
      const values = row(store, 1, index, 0, CAPACITY);
      for (let i = 0; i < values.length; i++) values[i] = Math.sin(i * (index + 1)) * (index + 1);
    }
    return store;
  }

  test.each(WIRE_TYPES)('a cache arrives as %s in chunks', async (type) => {
    const [from, to] = [filled(), new CpuKvStore(layout, 1, CAPACITY)];
    const sender = new KvSender(from, 1, type);
    const receiver = new KvReceiver(to, 0, 'f', type);
    receiver.manifest({ fingerprint: 'f', layout, dtype: type, positions: 290 });
    for (const frame of await packed(sender, [97, 290])) receiver.rows(frame);
    receiver.end(sender.end([]));
    const tolerance = { float32: 0, float16: 2 ** -11, int8: 1 / 253 }[type];
    for (let index = 0; index < rowCount(layout); index++) {
      const sent = row(from, 1, index, 0, 290);
      for (const [i, got] of row(to, 0, index, 0, 290).entries()) {
        expect(Math.abs(got - sent[i]!)).toBeLessThanOrEqual(tolerance * (index + 1));
      }
    }
    expect(receiver.bytes).toBe(rowCount(layout) * 290 * vectorBytes(type, HEAD_DIM));
  });

  test('a cache in another form than the one asked for is refused', () => {
    const receiver = new KvReceiver(filled(), 0, 'f', 'int8');
    const manifest = { fingerprint: 'f', layout, dtype: 'float16', positions: 10 };
    expect(() => receiver.manifest(manifest)).toThrow(/of float16, this worker takes .* of int8/);
  });

  test('an unknown form is refused, and an empty one means float32', () => {
    expect(() => readWireType('bfloat16')).toThrow(/bfloat16/);
    expect(readWireType('')).toBe('float32');
  });
});
