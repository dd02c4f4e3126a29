/** KV caches with flipped bits: nothing wrong is ever decoded, and a damaged cache is pulled again. */
import fc from 'fast-check';
import { expect, onTestFinished, test } from 'vitest';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { serializeFrame } from '../../services/lib/kv/frame-buffer.ts';
import { KvReceiver, KvSender } from '../../services/lib/kv/handoff.ts';
import { WIRE_TYPES, type WireType } from '../../services/lib/kv/wire.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { protocol } from '../../services/lib/rpc/contract.ts';
import type { KvFrame__Output } from '../../services/lib/rpc/gen/llavacode/v1/KvFrame.ts';
import { mount, serveRpc, streaming, unary } from '../../services/lib/rpc/server.ts';
import { continuation, FakeEngine, LAYOUT, nextToken } from '../support/fake-engine.ts';
import { packed, row } from '../support/kv-rows.ts';
import { decode, decodeRequest, FINGERPRINT, startDecode } from '../support/workers.ts';
import { fuzz, HANG_MS, TIMEOUT_MS } from './budget.ts';

const PROMPT = [3, 1, 4, 1, 5, 9, 2, 6];
const MAX_TOKENS = 8;
const FIRST = nextToken(PROMPT);
const wire = protocol.Kv.service.Pull;

/** The messages that a holder of PROMPT's cache sends, as bytes on the wire. */
async function messagesOf(type: WireType): Promise<Buffer[]> {
  const holder = new FakeEngine();
  holder.write(0, 0, PROMPT);
  const sender = new KvSender(holder.pool.store, 0, type);
  const manifest = { fingerprint: FINGERPRINT, layout: { ...LAYOUT, dtype: type }, positions: PROMPT.length };
  const rows = await packed(sender, [3, PROMPT.length]);
  const end = { ...sender.end([FIRST]), afterPrefillUs: 5 };
  const frames = [{ manifest }, ...rows.map((frame) => ({ rows: frame })), { end }];
  // Copied, because the buffers are used again once they are serialised.
  return frames.map((frame) => Buffer.from(serializeFrame(frame, wire.responseSerialize)));
}

const SENT = Object.fromEntries(
  await Promise.all(WIRE_TYPES.map(async (type) => [type, await messagesOf(type)])),
) as Record<WireType, Buffer[]>;

const flips = fc
  .constantFrom(...WIRE_TYPES)
  .chain((type) => fc.tuple(fc.constant(type), fc.nat(SENT[type].length - 1)))
  .chain(([type, message]) =>
    fc.record({
      type: fc.constant(type),
      message: fc.constant(message),
      bit: fc.nat(8 * SENT[type][message]!.length - 1),
    }),
  );

function flipped(messages: readonly Buffer[], message: number, bit: number): Buffer[] {
  return messages.map((bytes, i) => {
    if (i !== message) return bytes;
    const copy = Buffer.from(bytes);
    copy[bit >> 3]! ^= 1 << (bit & 7);
    return copy;
  });
}

/** The rows and first tokens of a cache that arrives; undefined if it is refused. */
function received(messages: readonly Buffer[], type: WireType): { rows: Float32Array[]; first: number[] } | undefined {
  const store = new CpuKvStore(LAYOUT, 1, 32);
  const receiver = new KvReceiver(store, 0, FINGERPRINT, type);
  try {
    for (const bytes of messages) {
      const { manifest, rows, end } = wire.responseDeserialize(bytes) as KvFrame__Output;
      if (manifest?.layout) receiver.manifest({ ...manifest, layout: manifest.layout, dtype: manifest.layout.dtype });
      else if (rows) receiver.rows(rows);
      else if (end) {
        receiver.end(end);
        const count = 2 * LAYOUT.layers * LAYOUT.kvHeads;
        return {
          rows: Array.from({ length: count }, (_, index) => row(store, 0, index, 0, PROMPT.length)),
          first: end.firstTokenIds,
        };
      }
    }
  } catch (error) {
    // These bytes are not a message any more, which gRPC itself reports.
    if (!(error instanceof ServingError))
      expect((error as Error).message).toMatch(/index out of range|invalid|illegal/i);
  }
  return undefined;
}

test('a flipped bit in a KV frame is noticed or harmless', { timeout: TIMEOUT_MS }, async () => {
  await fuzz('KV frames', flips, ({ type, message, bit }) => {
    const came = received(flipped(SENT[type], message, bit), type);
    // Some bits carry no content, such as those of measured times.
    if (came) expect(came).toEqual(received(SENT[type], type));
    return came !== undefined;
  });
});

test('a cache that was damaged on its way is pulled again and decoded correctly', {
  timeout: TIMEOUT_MS,
}, async () => {
  let damage: { message: number; bit: number } | undefined;
  let pulls = 0;
  const server = await serveRpc('127.0.0.1', 0, [
    mount.kv({
      Pull: streaming(async function* () {
        const messages = pulls++ === 0 && damage ? flipped(SENT.float32, damage.message, damage.bit) : SENT.float32;
        for (const bytes of messages) yield wire.responseDeserialize(bytes) as KvFrame__Output;
      }),
      Renew: unary(async () => ({})),
      Release: unary(async () => ({ readersLeft: 0 })),
    }),
  ]);
  onTestFinished(() => server.close(AbortSignal.abort()));
  const { client } = await startDecode();
  const handle = {
    address: server.address,
    leaseId: 'x',
    fingerprint: FINGERPRINT,
    positions: PROMPT.length,
    leaseMs: 1000,
    seal: Buffer.alloc(0),
  };
  const expected = continuation(PROMPT, MAX_TOKENS);
  // Only bits in the data of rows: flipping others can make another valid message.
  const inRows = fc.integer({ min: 1, max: SENT.float32.length - 2 }).chain((message) =>
    fc.record({
      message: fc.constant(message),
      bit: fc.integer({ min: 8 * 40, max: 8 * SENT.float32[message]!.length - 1 }),
    }),
  );
  await fuzz('KV pulls', inRows, async (flip) => {
    [damage, pulls] = [flip, 0];
    const { tokens } = await decode(client, decodeRequest(handle, MAX_TOKENS), AbortSignal.timeout(HANG_MS));
    expect([FIRST, ...tokens]).toEqual(expected.tokens);
    expect(pulls).toBe(2);
    return true;
  });
});
