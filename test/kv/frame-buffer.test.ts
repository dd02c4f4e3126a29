/** Messages that are built around the rows in place, in buffers that are used again. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { allocateRows, serializeFrame } from '../../services/lib/kv/frame-buffer.ts';
import { protocol } from '../../services/lib/rpc/contract.ts';
import type { KvFrame } from '../../services/lib/rpc/gen/llavacode/v1/KvFrame.ts';

const { responseSerialize: generated, responseDeserialize } = protocol.Kv.service.Pull;
const serialize = (frame: KvFrame) => serializeFrame(frame, generated);

const uint32 = fc.nat(0xffffffff);
const frame = fc.record({ start: uint32, end: uint32, rowStart: uint32, rowEnd: uint32, crc32: uint32 });

test('a message that is built in place reads like one of the generated serialiser', async () => {
  await fc.assert(
    fc.asyncProperty(frame, fc.uint8Array({ minLength: 1, maxLength: 40_000 }), async (fields, bytes) => {
      const data = allocateRows(bytes.length);
      data.set(bytes);
      expect(data.byteOffset % 8).toBe(0);
      const made = Buffer.from(serialize({ rows: { ...fields, data } }));
      expect(responseDeserialize(made)).toEqual(responseDeserialize(generated({ rows: { ...fields, data: bytes } })));
      await Promise.resolve();
    }),
  );
});

test('a buffer is used again after gRPC had its turn to copy the message, and not before', async () => {
  const first = allocateRows(5_000_000);
  const second = allocateRows(5_000_000);
  expect(second.buffer).not.toBe(first.buffer);
  serialize({ rows: { data: first } });
  expect(allocateRows(5_000_000).buffer).not.toBe(first.buffer);
  await Promise.resolve();
  expect(allocateRows(5_000_000).buffer).toBe(first.buffer);
});

test('the largest spare buffers are kept when there are too many, and a frame takes the smallest one that holds it', async () => {
  const done = async (...buffers: Buffer[]) => {
    for (const data of buffers) serialize({ rows: { data } });
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
