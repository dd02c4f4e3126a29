/** Messages made where the rows lie: byte for byte what the usual serialiser would make, from buffers used again. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { allocateRows } from '../../services/lib/kv/frame-buffer.ts';
import { packageDefinition } from '../../services/lib/rpc/contract.ts';

interface Method {
  responseSerialize(frame: object): Buffer;
  responseDeserialize(bytes: Buffer): { rows: object };
}
const { responseSerialize, responseDeserialize } = (packageDefinition['llavacode.v1.Kv'] as unknown as { Pull: Method })
  .Pull;

const uint32 = fc.nat(0xffffffff);
const frame = fc.record({ start: uint32, end: uint32, rowStart: uint32, rowEnd: uint32, crc32: uint32 });

test('what arrives is what a frame with data of its own would bring', async () => {
  await fc.assert(
    fc.asyncProperty(frame, fc.uint8Array({ minLength: 1, maxLength: 40_000 }), async (fields, bytes) => {
      const data = allocateRows(bytes.length);
      data.set(bytes);
      expect(data.byteOffset % 8).toBe(0);
      const made = Buffer.from(responseSerialize({ rows: { ...fields, data } }));
      expect(responseDeserialize(made)).toEqual(
        responseDeserialize(responseSerialize({ rows: { ...fields, data: bytes } })),
      );
      await Promise.resolve();
    }),
  );
});

test('a buffer is used again after its message was made, not before', async () => {
  const first = allocateRows(5_000_000);
  const second = allocateRows(5_000_000);
  expect(second.buffer).not.toBe(first.buffer);
  responseSerialize({ rows: { data: first } });
  expect(allocateRows(5_000_000).buffer).not.toBe(first.buffer);
  await Promise.resolve();
  expect(allocateRows(5_000_000).buffer).toBe(first.buffer);
});

test('of too many spare buffers the larger are kept, and a frame takes the smallest that holds it', async () => {
  const done = async (...buffers: Buffer[]) => {
    for (const data of buffers) responseSerialize({ rows: { data } });
    await Promise.resolve();
  };
  const large = Array.from({ length: 8 }, () => allocateRows(6_000_000));
  const small = Array.from({ length: 8 }, () => allocateRows(50_000));
  await done(...small);
  await done(...large);
  const again = Array.from({ length: 8 }, () => allocateRows(6_000_000).buffer);
  const kept = new Set(large.map(({ buffer }) => buffer));
  expect(again.filter((buffer) => kept.has(buffer))).toHaveLength(8);
  const [little, big] = [allocateRows(1000), allocateRows(2000)];
  await done(big, little);
  expect(allocateRows(900).buffer).toBe(little.buffer);
});
