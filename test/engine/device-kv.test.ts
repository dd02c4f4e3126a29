/** KV caches on a device, against those in the process's memory. The device is the tests' software GPU. */
import fc from 'fast-check';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { DeviceKv } from '../../services/lib/engine/device-kv.ts';
import { OrtSession } from '../../services/lib/engine/ort.ts';
import { OrtValue } from '../../services/lib/engine/ort-value.ts';
import { assertKeepsKv } from '../../services/lib/engine/self-check.ts';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { type KvLayout, type KvRange, planFrames, positionBytes, rowCount } from '../../services/lib/kv/layout.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { softwareGpu } from '../support/device-decoder.ts';
import { COMPILING_MS } from '../support/vulkan.ts';

const SLOTS = 3;
const CAPACITY = 24;

const gpu = softwareGpu();

/** Bytes that say where they belong: no two operations write the same ones. */
function content(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed * 2654435761 + 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  // No NaN: the upper byte of each element stays below infinity's exponent, so that nothing may change its bits.
  for (let i = 1; i < length; i += 2) bytes[i]! &= 0x3f;
  return bytes;
}

const range: fc.Arbitrary<(layout: KvLayout) => KvRange> = fc
  .tuple(fc.nat(CAPACITY), fc.nat(CAPACITY), fc.nat(1_000), fc.nat(1_000))
  .map(([a, b, c, d]) => (layout: KvLayout) => {
    const rows = rowCount(layout) + 1;
    const [start, end] = [Math.min(a, b), Math.max(a, b)];
    return { start, end, rowStart: Math.min(c % rows, d % rows), rowEnd: Math.max(c % rows, d % rows) };
  });
const slot = fc.nat(1_000);
const operation = fc.oneof(
  fc.record({ kind: fc.constantFrom('write' as const, 'read' as const), slot, range, seed: fc.nat() }),
  fc.record({ kind: fc.constant('swap' as const), slot, other: slot, end: fc.nat(CAPACITY) }),
  fc.record({ kind: fc.constant('copy' as const), slot, other: slot, end: fc.nat(CAPACITY), start: fc.nat(CAPACITY) }),
);

const everything = (layout: KvLayout): KvRange => ({ start: 0, end: CAPACITY, rowStart: 0, rowEnd: rowCount(layout) });

const LAYOUTS: [string, KvLayout][] = [
  ['32-bit floats', { layers: 2, kvHeads: 2, headDim: 8 }],
  ['16-bit floats', { layers: 1, kvHeads: 3, headDim: 8, type: 'float16' }],
];
describe.each(LAYOUTS)('with %s', (_, layout) => {
  test.each(['steps', 'prompts', 'both'] as const)(
    'any order of reads, writes, copies and swaps leaves the bytes of the CPU store; slots for %s',
    async (use) => {
      const store = await DeviceKv.create(gpu(), layout, SLOTS, CAPACITY, use);
      const all = store.staging === undefined ? SLOTS : SLOTS + 1;
      const cpu = new CpuKvStore(layout, all, CAPACITY);
      try {
        for (let i = 0; i < all; i++) {
          const bytes = content(positionBytes(layout) * CAPACITY, i);
          cpu.write(i, everything(layout), bytes);
          await store.write(i, everything(layout), bytes);
        }
        await fc.assert(
          fc.asyncProperty(fc.array(operation, { minLength: 1, maxLength: 8 }), async (operations) => {
            const pending: Promise<unknown>[] = []; // nothing waits for anything: the store keeps the order
            for (const op of operations) {
              const at = op.slot % all;
              if ('other' in op) {
                const other = op.other % all;
                const start = op.kind === 'copy' ? Math.min(op.start, op.end) : undefined;
                cpu[op.kind](at, other, op.end, start as number);
                pending.push(store[op.kind](at, other, op.end, start as number));
              } else if (op.kind === 'write') {
                const wanted = op.range(layout);
                const { start, end, rowStart, rowEnd } = wanted;
                const rows = rowCount(layout);
                const length = ((rowEnd - rowStart) * (end - start) * positionBytes(layout)) / rows;
                const bytes = content(length, op.seed);
                cpu.write(at, wanted, bytes);
                pending.push(store.write(at, wanted, bytes));
                bytes.fill(0); // it was copied
              } else {
                const wanted = op.range(layout);
                const expected = cpu.read(at, wanted).map((row) => Buffer.from(row).toString('hex'));
                const same = (rows: Uint8Array[]) =>
                  expect(rows.map((row) => Buffer.from(row).toString('hex'))).toEqual(expected);
                pending.push(store.read(at, wanted).then(same));
              }
            }
            await Promise.all(pending);
            for (let i = 0; i < all; i++) {
              const rows = await store.read(i, everything(layout));
              expect(Buffer.concat(rows).equals(Buffer.concat(cpu.read(i, everything(layout))))).toBe(true);
            }
          }),
          { numRuns: 25 },
        );
      } finally {
        await store.dispose();
      }
    },
    COMPILING_MS,
  );
});

test('frames that hold some rows of some layers go out of one device store and into another', async () => {
  const layout: KvLayout = { layers: 3, kvHeads: 2, headDim: 8 };
  const [from, to] = [
    await DeviceKv.create(gpu(), layout, 2, CAPACITY, 'prompts'),
    await DeviceKv.create(gpu(), layout, 2, CAPACITY, 'both'),
  ];
  try {
    const bytes = content(positionBytes(layout) * CAPACITY, 7);
    await from.write(1, everything(layout), bytes);
    for (const frame of planFrames(layout, 0, CAPACITY, 5 * 7 * 32)) {
      await to.write(0, frame, Buffer.concat(await from.read(1, frame)));
    }
    expect(Buffer.concat(await to.read(0, everything(layout))).equals(bytes)).toBe(true);
  } finally {
    await from.dispose();
    await to.dispose();
  }
});

test('a store that is warm opens no graph more, whatever number of tensors its frames touch', async () => {
  const layout: KvLayout = { layers: 6, kvHeads: 1, headDim: 8 };
  const store = await DeviceKv.create(gpu(), layout, 2, CAPACITY, 'both');
  const builds = vi.spyOn(OrtSession, 'build');
  onTestFinished(builds.mockRestore);
  try {
    await store.warmUp();
    expect(builds).toHaveBeenCalledTimes(11); // export and import of 12, 8, 4, 2 and 1 tensors; copy
    const bytes = content(positionBytes(layout) * CAPACITY, 3);
    await store.write(1, everything(layout), bytes);
    for (let tensors = 1; tensors <= rowCount(layout); tensors++) {
      const frame = { start: 3, end: 7, rowStart: rowCount(layout) - tensors, rowEnd: rowCount(layout) };
      const rows = Buffer.concat(await store.read(1, frame));
      const rowBytes = CAPACITY * 8 * 4;
      const wanted = Array.from({ length: tensors }, (_, i) => {
        const at = (frame.rowStart + i) * rowBytes + 3 * 8 * 4;
        return bytes.subarray(at, at + 4 * 8 * 4);
      });
      expect(rows.equals(Buffer.concat(wanted))).toBe(true);
      await store.write(0, frame, rows);
      expect(Buffer.concat(await store.read(0, frame)).equals(rows)).toBe(true);
    }
    expect(builds).toHaveBeenCalledTimes(11);
  } finally {
    await store.dispose();
  }
});

test('a write that fails frees its staging memory: rows that cannot be made, and a device that is lost', async () => {
  const layout: KvLayout = { layers: 1, kvHeads: 1, headDim: 8 };
  const store = await DeviceKv.create(gpu(), layout, 2, CAPACITY, 'both');
  const freed = vi.spyOn(OrtValue.prototype, 'dispose');
  onTestFinished(freed.mockRestore);
  try {
    const failing = () => {
      throw new Error('this row cannot be made');
    };
    expect(() => store.write(0, everything(layout), failing)).toThrow('this row cannot be made');
    expect(freed).toHaveBeenCalledOnce();
    const lost = new ServingError('runtime_failed', 'the device is lost');
    const attempt = vi.spyOn(gpu().health, 'attempt').mockRejectedValueOnce(lost);
    onTestFinished(attempt.mockRestore);
    await expect(store.write(0, everything(layout), () => {})).rejects.toBe(lost);
    expect(freed).toHaveBeenCalledTimes(2);
  } finally {
    await store.dispose();
  }
});

test('a store that is disposed of finishes what was asked for before, and refuses the rest', async () => {
  const layout: KvLayout = { layers: 1, kvHeads: 1, headDim: 8 };
  const store = await DeviceKv.create(gpu(), layout, 2, CAPACITY, 'both');
  const bytes = content(positionBytes(layout) * CAPACITY, 5);
  void store.write(0, everything(layout), bytes);
  void store.copy(0, 1, CAPACITY);
  const read = store.read(1, everything(layout));
  const disposing = store.dispose();
  const draining = { code: 'draining' };
  await expect(store.read(0, everything(layout))).rejects.toMatchObject(draining);
  await expect(store.copy(0, 1, 2)).rejects.toMatchObject(draining);
  expect(() => store.write(0, everything(layout), bytes)).toThrow(expect.objectContaining(draining));
  expect(Buffer.concat(await read).equals(bytes)).toBe(true);
  await disposing;
  await store.dispose(); // once is enough
  await expect(store.swap(0, 1, 2)).rejects.toMatchObject(draining);
});

// The software device makes tensors of any size, as WebGPU does everywhere: the loss shows when they are used. None of
// these takes memory, since not even a buffer comes of them.
test.each([
  [
    'are lost',
    4.5,
    /row 0 at the end of slot 0 came back changed\. .*4 slots x 18874368 tokens x 128 bytes = 9\.0 GiB/,
  ],
  ['no kernel can reach', 200, /cannot reach what lies in its KV caches \(.*Too many storage buffers.* = 400\.0 GiB/s],
])(
  'KV caches that %s, because they are too large for the device, are refused with the arithmetic',
  async (_, gibPerTensor, message) => {
    const layout: KvLayout = { layers: 1, kvHeads: 1, headDim: 16 };
    const capacity = (gibPerTensor * 2 ** 30) / (4 * layout.headDim * 4);
    const store = await DeviceKv.create(gpu(), layout, 4, capacity, 'steps');
    try {
      await expect(assertKeepsKv(store, gpu().name)).rejects.toMatchObject({
        code: 'out_of_memory',
        message: expect.stringMatching(message),
      });
    } finally {
      await store.dispose();
    }
  },
);

test('a range beyond the store is refused', async () => {
  const layout: KvLayout = { layers: 1, kvHeads: 1, headDim: 8 };
  const store = await DeviceKv.create(gpu(), layout, SLOTS, CAPACITY, 'steps');
  try {
    await expect(store.read(SLOTS, everything(layout))).rejects.toThrow(RangeError);
    await expect(store.copy(0, 1, CAPACITY + 1)).rejects.toThrow(RangeError);
    expect(() => store.write(0, everything(layout), new Uint8Array(3))).toThrow(RangeError);
  } finally {
    await store.dispose();
  }
});
