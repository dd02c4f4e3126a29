/** Frames from one pool to another: what arrives is what was sent, or an error says what is wrong. */
import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { type KvEnd, type KvManifest, KvReceiver, type KvRows, KvSender } from '../../services/lib/kv/handoff.ts';
import { type KvLayout, rowCount } from '../../services/lib/kv/layout.ts';
import type { ErrorCode } from '../../services/lib/process/errors.ts';
import { packed, row, rowBytes, rows } from '../support/kv-rows.ts';

const FINGERPRINT = 'f'.repeat(64);
const LAYOUT: KvLayout = { layers: 2, kvHeads: 2, headDim: 3 };
const failing = (code: ErrorCode) => expect.objectContaining({ code });

function filledStore(layout: KvLayout, slots: number, capacity: number): CpuKvStore {
  const store = new CpuKvStore(layout, slots, capacity);
  let next = 0.5;
  for (const { key, value } of store.layers) {
    for (const tensor of [key, value]) for (let i = 0; i < tensor.length; i++) tensor[i] = next++;
  }
  return store;
}

const contents = (store: CpuKvStore, slot: number, positions: number) => rows(store, slot, 0, positions);

interface Sent {
  readonly manifest: KvManifest;
  readonly frames: KvRows[];
  readonly end: KvEnd;
}

/** @param cuts positions at which a prompt chunk ends, ascending, the last one all positions. */
async function send(store: CpuKvStore, slot: number, cuts: readonly number[]): Promise<Sent> {
  const sender = new KvSender(store, slot);
  const frames = await packed(sender, cuts);
  const manifest = {
    fingerprint: FINGERPRINT,
    layout: store.layout,
    dtype: 'float32',
    positions: cuts.at(-1) as number,
  };
  return { manifest, frames, end: sender.end([]) };
}

function receive(receiver: KvReceiver, { manifest, frames, end }: Sent): void {
  receiver.manifest(manifest);
  for (const frame of frames) receiver.rows(frame);
  receiver.end(end);
}

/** Four frames of a small cache, and a receiver for them. */
const SENT = await send(filledStore(LAYOUT, 1, 8), 0, [2, 4, 5, 7]);
const example = () => ({ sent: SENT, receiver: new KvReceiver(new CpuKvStore(LAYOUT, 1, 8), 0, FINGERPRINT) });

/** Bytes as protobuf gives them: at an offset of a larger buffer that is not aligned for floats. */
function misaligned(data: Uint8Array): Uint8Array {
  const message = Buffer.alloc(data.length + 5);
  message.set(data, 3);
  return message.subarray(3, 3 + data.length);
}

describe('round trip', () => {
  const dimension = fc.integer({ min: 1, max: 4 });
  const layouts = fc.record({ layers: dimension, kvHeads: dimension, headDim: fc.integer({ min: 1, max: 9 }) });
  const chunkings = fc
    .uniqueArray(fc.integer({ min: 1, max: 20 }), { minLength: 1, maxLength: 6 })
    .map((cuts) => cuts.sort((a, b) => a - b));

  test('a cache of any layout arrives in another slot of another capacity, however its positions were cut into chunks', async () => {
    await fc.assert(
      fc.asyncProperty(layouts, chunkings, fc.nat(2), fc.nat(2), async (layout, cuts, from, to) => {
        const positions = cuts.at(-1) as number;
        const source = filledStore(layout, 3, positions + 2);
        const target = new CpuKvStore(layout, 3, positions + 5);
        const sent = await send(source, from, cuts);
        const frames = sent.frames.map((frame) => ({ ...frame, data: misaligned(frame.data) }));
        const receiver = new KvReceiver(target, to, FINGERPRINT);
        receive(receiver, { ...sent, frames });
        expect(contents(target, to, positions)).toEqual(contents(source, from, positions));
        expect(receiver.bytes).toBe(sent.end.bytes);
        for (const other of [0, 1, 2].filter((slot) => slot !== to)) {
          expect(
            contents(target, other, positions)
              .flat()
              .every((element) => element === 0),
          ).toBe(true);
        }
      }),
    );
  });

  test('a cache arrives in many frames, cut between positions and between rows', async () => {
    const layout = { layers: 2, kvHeads: 1, headDim: 128 };
    const positions = 5000; // 4 rows of 2.4 MiB
    const source = filledStore(layout, 1, positions + 1);
    const target = new CpuKvStore(layout, 1, positions + 1);
    const sent = await send(source, 0, [300, positions]);
    expect(sent.frames.length).toBeGreaterThan(10);
    receive(new KvReceiver(target, 0, FINGERPRINT), sent);
    for (let row = 0; row < rowCount(layout); row++) {
      const [came, went] = [target, source].map((store) => rowBytes(store, 0, row, 0, positions));
      expect(Buffer.compare(came!, went!)).toBe(0);
    }
  });

  test('a packed frame does not change with the slot', async () => {
    const source = filledStore(LAYOUT, 1, 8);
    const before = contents(source, 0, 7);
    const sent = await send(source, 0, [7]);
    row(source, 0, 0, 0, 7).fill(-1);
    const target = new CpuKvStore(LAYOUT, 1, 8);
    receive(new KvReceiver(target, 0, FINGERPRINT), sent);
    expect(contents(target, 0, 7)).toEqual(before);
  });
});

describe('manifest', () => {
  test('the manifest of another model is refused with both fingerprints', () => {
    const { sent, receiver } = example();
    const other = 'e'.repeat(64);
    expect(() => receiver.manifest({ ...sent.manifest, fingerprint: other })).toThrowError(
      expect.objectContaining({
        code: 'fingerprint_mismatch',
        message: expect.stringMatching(`${other}.*${FINGERPRINT}`),
      }),
    );
  });

  test.each([
    { layout: { ...LAYOUT, layers: 3 } },
    { layout: { ...LAYOUT, kvHeads: 1 } },
    { layout: { ...LAYOUT, headDim: 4 } },
    { dtype: 'float16' },
  ])('the manifest of another layout is refused: %j', (change) => {
    const { sent, receiver } = example();
    expect(() => receiver.manifest({ ...sent.manifest, ...change })).toThrowError(failing('kv_layout_mismatch'));
  });

  test('a manifest of more positions than a slot holds beside one output token is refused', () => {
    const { sent, receiver } = example();
    expect(() => receiver.manifest({ ...sent.manifest, positions: 8 })).toThrowError(
      failing('context_length_exceeded'),
    );
    receiver.manifest({ ...sent.manifest, positions: 7 });
  });

  test('no frame is accepted before the manifest', () => {
    const { sent, receiver } = example();
    expect(() => receiver.rows(sent.frames[0] as KvRows)).toThrowError(failing('kv_truncated'));
    expect(() => receiver.end(sent.end)).toThrowError(failing('kv_truncated'));
  });
});

describe('a stream that was changed', () => {
  const frameIndex = fc.nat(3);

  const refused = (change: (sent: Sent) => Partial<Sent>, code: ErrorCode) => {
    const { sent, receiver } = example();
    expect(sent.frames).toHaveLength(4);
    expect(() => receive(receiver, { ...sent, ...change(sent) })).toThrowError(failing(code));
  };

  test('a stream with a flipped bit is refused', () => {
    fc.assert(
      fc.property(frameIndex, fc.nat(), (index, bit) => {
        refused(({ frames }) => {
          const data = new Uint8Array((frames[index] as KvRows).data);
          const at = bit % (data.length * 8);
          data[at >> 3] = (data[at >> 3] as number) ^ (1 << (at & 7));
          return { frames: frames.map((frame, i) => (i === index ? { ...frame, data } : frame)) };
        }, 'kv_digest_mismatch');
      }),
    );
  });

  test('a stream with frames whose data and CRC were exchanged is refused', () => {
    fc.assert(
      fc.property(frameIndex, (index) => {
        refused(({ frames }) => {
          const data = new Uint8Array((frames[index] as KvRows).data.length);
          const forged = { data, crc32: crc32(data) };
          return { frames: frames.map((frame, i) => (i === index ? { ...frame, ...forged } : frame)) };
        }, 'kv_digest_mismatch');
      }),
    );
  });

  test('a stream without one of its frames is refused', () => {
    fc.assert(
      fc.property(frameIndex, (index) => {
        refused(({ frames }) => ({ frames: frames.toSpliced(index, 1) }), 'kv_truncated');
      }),
    );
  });

  test('a stream with a frame twice is refused', () => {
    fc.assert(
      fc.property(frameIndex, fc.nat(4), (index, at) => {
        refused(({ frames }) => ({ frames: frames.toSpliced(at, 0, frames[index] as KvRows) }), 'kv_truncated');
      }),
    );
  });

  test('a stream with two frames swapped is refused', () => {
    fc.assert(
      fc.property(frameIndex, fc.integer({ min: 1, max: 3 }), (a, distance) => {
        const b = (a + distance) % 4;
        refused(({ frames }) => {
          const swapped = [...frames];
          [swapped[a], swapped[b]] = [frames[b] as KvRows, frames[a] as KvRows];
          return { frames: swapped };
        }, 'kv_truncated');
      }),
    );
  });

  test('a stream with a shortened frame is refused', () => {
    fc.assert(
      fc.property(frameIndex, fc.integer({ min: 1, max: 24 }), (index, missing) => {
        refused(({ frames }) => {
          const data = (frames[index] as KvRows).data.subarray(0, -missing);
          return {
            frames: frames.map((frame, i) => (i === index ? { ...frame, data, crc32: crc32(data) } : frame)),
          };
        }, 'kv_truncated');
      }),
    );
  });

  test.each([
    ['rows beyond the last', { rowEnd: 9 }],
    ['no rows', { rowEnd: 0 }],
    ['positions beyond the last', { end: 8 }],
    ['no positions', { end: 0 }],
  ])('a frame with %s is refused', (_, range) => {
    refused(
      ({ frames }) => ({ frames: frames.map((frame, i) => (i === 0 ? { ...frame, ...range } : frame)) }),
      'kv_truncated',
    );
  });

  test('an end with more frames, fewer bytes or another digest is refused', () => {
    refused(({ end }) => ({ end: { ...end, frames: 5 } }), 'kv_truncated');
    refused(({ end }) => ({ end: { ...end, bytes: end.bytes - 1 } }), 'kv_digest_mismatch');
    refused(({ end }) => ({ end: { ...end, digest: end.digest ^ 1 } }), 'kv_digest_mismatch');
  });
});

describe.each([
  ['float16', 2],
  ['int8-channel', 1],
] as const)('a store of %s', (type, bytes) => {
  const layout = { layers: 2, kvHeads: 1, headDim: 4, type };
  const filled = () => {
    const store = new CpuKvStore(layout, 2, 8);
    for (const layer of store.layers) {
      for (const part of [layer.key, layer.value]) for (let i = 0; i < part.length; i++) part[i] = (i * 7919) & 0x7bff;
    }
    return store;
  };

  test('a cache travels unchanged in its bytes', async () => {
    const [source, target] = [filled(), new CpuKvStore(layout, 2, 8)];
    const sender = new KvSender(source, 1, type);
    const receiver = new KvReceiver(target, 0, FINGERPRINT, type);
    receiver.manifest({ fingerprint: FINGERPRINT, layout, dtype: type, positions: 7 });
    for (const frame of await packed(sender, [3, 7])) receiver.rows(frame);
    receiver.end(sender.end([1]));
    expect(receiver.bytes).toBe(7 * 4 * 4 * bytes);
    for (let row = 0; row < rowCount(layout); row++) {
      expect(rowBytes(target, 0, row, 0, 7)).toEqual(rowBytes(source, 1, row, 0, 7));
    }
  });

  test('values are sent and taken as they are only', () => {
    expect(() => new KvSender(filled(), 0, 'int8')).toThrow(type);
    expect(() => new KvReceiver(filled(), 0, FINGERPRINT, 'float32')).toThrow(type);
  });
});
