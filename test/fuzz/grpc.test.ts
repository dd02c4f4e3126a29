/**
 * The real prefill and decode services around a fake engine: whatever is sent, they answer, and give every slot back.
 */
import { Client, credentials, type StatusObject, status } from '@grpc/grpc-js';
import fc from 'fast-check';
import { expect, onTestFinished, test } from 'vitest';
import { ServingError } from '../../services/lib/process/errors.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { protocol } from '../../services/lib/rpc/contract.ts';
import type { PrefillEvent__Output } from '../../services/lib/rpc/gen/llavacode/v1/PrefillEvent.ts';
import type { PrefillRequest } from '../../services/lib/rpc/gen/llavacode/v1/PrefillRequest.ts';
import { samplingMessage } from '../../services/lib/rpc/messages.ts';
import { until, VOCAB } from '../support/fake-engine.ts';
import { fakeIndexer } from '../support/fake-indexer.ts';
import {
  decodeRequest,
  FINGERPRINT,
  prefillRequest,
  stagedBytes,
  startDecode,
  startPrefill,
} from '../support/workers.ts';
import { damaged, fuzz, HANG_MS, TIMEOUT_MS } from './budget.ts';

const rarely = <T>(usual: fc.Arbitrary<T>, odd: fc.Arbitrary<T>) =>
  fc.oneof({ weight: 9, arbitrary: usual }, { weight: 1, arbitrary: odd });
const int32 = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
const uint32 = fc.nat(2 ** 32 - 1);
/** Text that tempts an encoder: other planes, half of a character, NUL, quotes; sometimes far too much of it. */
const text = rarely(
  fc.string({ unit: fc.constantFrom('a', 'é', '😀', '\ud83d', '\0', '/', '"', '%') }),
  fc.constantFrom('é', '😀', 'x').map((unit) => unit.repeat(20_000)),
);
const oddFloat = fc.constantFrom(Number.NaN, Infinity, -Infinity, -1, 1e38);

const sampling = fc.record({
  temperature: rarely(fc.constantFrom(0, 0.5, 1), oddFloat),
  topP: rarely(fc.constantFrom(0.1, 1), oddFloat),
  topK: rarely(fc.nat(5), uint32),
  minP: rarely(fc.constantFrom(0, 0.1), oddFloat),
  seed: rarely(fc.nat(), fc.maxSafeNat()),
  logprobs: rarely(fc.integer({ min: -1, max: 5 }), int32),
  frequencyPenalty: rarely(fc.constant(0), oddFloat),
  presencePenalty: rarely(fc.constant(0), oddFloat),
  logitBias: rarely(fc.constant({}), fc.dictionary(int32.map(String), fc.float({ noNaN: false }), { maxKeys: 3 })),
  stopTokenIds: rarely(fc.array(fc.nat(VOCAB - 1), { maxLength: 2 }), fc.array(int32, { maxLength: 2 })),
  minTokens: rarely(fc.constant(0), uint32),
  priorOutputIds: rarely(fc.constant<number[]>([]), fc.array(int32, { maxLength: 40 })),
});

/** Elements as large as the fake engine can keep, and such as no model ever gives. */
const oddVectors = fc
  .array(fc.constantFrom(0, 1, 1000, Number.NaN, Infinity), { maxLength: 8 })
  .map((elements) => Buffer.from(Float32Array.from(elements).buffer));

const soft = fc.integer({ min: 0, max: 3 }).chain((count) =>
  fc.record({
    positions: rarely(fc.constant(Array.from({ length: count }, (_, i) => i)), fc.array(uint32, { maxLength: 4 })),
    vectors: rarely(fc.constant(Buffer.alloc(count * 8, 1)), oddVectors),
  }),
);

const prompts: fc.Arbitrary<PrefillRequest> = fc.record({
  requestId: text,
  fingerprint: rarely(fc.constant(FINGERPRINT), text),
  tokenIds: rarely(fc.array(fc.nat(VOCAB - 1), { minLength: 1, maxLength: 20 }), fc.array(int32, { maxLength: 60 })),
  soft: fc.option(soft),
  choices: rarely(fc.array(sampling, { minLength: 1, maxLength: 2 }), fc.array(sampling, { maxLength: 5 })),
  readers: rarely(fc.nat(2), uint32),
  promptLogprobs: rarely(fc.constant(-1), int32),
  cacheSalt: fc.constantFrom('', 'a'),
});

const journeys = fc.record({
  prompt: prompts,
  decode: fc.record({
    choice: rarely(fc.constant(0), uint32),
    sampling: rarely(sampling, fc.constant(null as never)),
    maxTokens: rarely(fc.integer({ min: 1, max: 10 }), uint32),
    kv: rarely(fc.constant({}), fc.record({ positions: uint32, leaseId: text }, { requiredKeys: [] })),
    odd: rarely(fc.constant({}), fc.constantFrom({ kv: null }, { kv: { address: 'nowhere.invalid:1' } })),
  }),
  /** The caller hangs up after so many events; mostly it does not. */
  leaveAfter: rarely(fc.constant(Infinity), fc.nat(3)),
});

/** Reads a call; a refusal must be one of ours, and no surprise of the service's. @param lost it may lose others. */
async function follow<T>(
  events: AsyncIterable<T>,
  leaveAfter: number,
  { onEvent = () => {}, lost = true }: { onEvent?: (event: T) => Promise<void> | void; lost?: boolean } = {},
) {
  let count = 0;
  try {
    for await (const event of events) {
      await onEvent(event);
      if (++count > leaveAfter) return true;
    }
    return true;
  } catch (error) {
    expect(error).toBeInstanceOf(ServingError);
    const { code, message } = error as ServingError;
    expect(lost || code !== 'worker_lost', message).toBe(true);
    expect(code, message).not.toBe('internal');
    expect(code, message).not.toBe('deadline_exceeded');
    return false;
  }
}

test('gRPC messages near the protocol are answered or refused with a code, and leave no slot taken', {
  timeout: TIMEOUT_MS,
}, async () => {
  const prefill = await startPrefill({ kvLeaseMs: 50 });
  const decode = await startDecode();
  await fuzz('gRPC messages', journeys, async ({ prompt, decode: wanted, leaveAfter }) => {
    const signal = AbortSignal.timeout(HANG_MS);
    const decoding: Promise<boolean>[] = [];
    const onEvent = ({ accepted }: PrefillEvent__Output) => {
      if (!accepted?.kv) return;
      const { odd, kv, ...change } = wanted;
      const request = { ...decodeRequest({ ...accepted.kv, ...kv }, 1), ...change, ...odd } as never;
      decoding.push(follow(decode.client.decode(request, signal), leaveAfter));
    };
    await follow(prefill.client.prefill(prompt, signal), leaveAfter, { onEvent });
    return (await Promise.all(decoding)).includes(true);
  });
  for (const { pool } of [prefill.engine, decode.engine]) await until(() => pool.reserved === 0);
  await until(async () => (await stagedBytes()) === 0);
});

const named = fc.record({
  tenant: rarely(fc.constantFrom('default', 'acme'), text),
  repo: rarely(fc.constantFrom('shop', 'acme/shop'), text),
});
const starts = fc.record({
  requestId: text,
  format: rarely(fc.constant('json'), fc.oneof(fc.constantFrom('tar', 'tar.gz', 'zip'), text)),
  stripComponents: rarely(fc.constant(0), uint32),
});
const file = fc.record({ path: rarely(fc.constantFrom('a.py', 'b.py'), text), content: text });
const uploads = fc
  .oneof(
    fc.record({ files: fc.array(file, { maxLength: 3 }) }),
    fc.record({ changes: fc.array(file, { maxLength: 3 }), base_version: fc.constantFrom(undefined, 'v') }),
    fc.tuple(text).map(([key]) => ({ files: [], [key]: 1 })),
  )
  .map((upload) => Buffer.from(JSON.stringify(upload)));
const indexerCalls = fc.record({
  start: rarely(fc.tuple(named, starts), fc.constant(undefined)),
  body: rarely(
    uploads,
    fc.oneof(
      fc.uint8Array({ maxLength: 600 }),
      text.map((it) => Buffer.from(it)),
    ),
  ),
  /** The position at which the body is cut in two. */
  cut: fc.nat(60),
  /** A message that is neither start nor data. */
  odd: rarely(fc.constant(false), fc.constant(true)),
  removed: named,
  leaveAfter: rarely(fc.constant(Infinity), fc.nat(1)),
});

test('calls near those of an indexer are answered or refused with a code, and leave nothing running', {
  timeout: TIMEOUT_MS,
}, async () => {
  const { client } = await fakeIndexer();
  await fuzz('Indexer calls', indexerCalls, async ({ start, body, cut, odd, removed, leaveAfter }) => {
    const signal = AbortSignal.timeout(HANG_MS);
    async function* upload() {
      if (start) yield { start: { ...start[0], ...start[1] } };
      yield { data: Buffer.from(body.subarray(0, cut)) };
      if (odd) yield {};
      yield { data: Buffer.from(body.subarray(cut)) };
    }
    const taken = await follow(client.index(upload(), signal), leaveAfter, { lost: false });
    async function* removal() {
      yield await client.delete(removed, signal);
    }
    await follow(removal(), Infinity, { lost: false });
    return taken;
  });
  await until(async () => (await client.describe(AbortSignal.timeout(HANG_MS))).running === 0);
});

const serialized = {
  '/llavacode.v1.Prefill/Prefill': protocol.Prefill.service.Prefill.requestSerialize(
    prefillRequest([1, 2, 3], { soft: { positions: [0], vectors: Buffer.alloc(8) } }),
  ),
  '/llavacode.v1.Decode/Decode': protocol.Decode.service.Decode.requestSerialize(
    decodeRequest(
      {
        address: '127.0.0.1:1',
        leaseId: 'x',
        fingerprint: FINGERPRINT,
        positions: 3,
        leaseMs: 0,
        seal: Buffer.alloc(0),
      },
      5,
      {
        sampling: samplingMessage(GREEDY),
      },
    ),
  ),
  '/llavacode.v1.Kv/Pull': protocol.Kv.service.Pull.requestSerialize({ leaseId: 'x', fingerprint: FINGERPRINT }),
  '/llavacode.v1.Prefill/Describe': Buffer.alloc(0),
};
const calls = fc
  .constantFrom(...(Object.keys(serialized) as (keyof typeof serialized)[]))
  .chain((method) => fc.tuple(fc.constant(method), damaged(fc.constant(serialized[method]))));

test('gRPC bytes near the protocol are answered or refused, and leave no slot taken', {
  timeout: TIMEOUT_MS,
}, async () => {
  const prefill = await startPrefill({ kvLeaseMs: 50 });
  const decode = await startDecode();
  const clients = [prefill, decode].map(({ server }) => new Client(server.address, credentials.createInsecure()));
  onTestFinished(() => {
    for (const client of clients) client.close();
  });
  const bytes = (message: Buffer) => message;
  await fuzz('gRPC bytes', calls, async ([method, message]) => {
    const client = clients[method.includes('Decode') ? 1 : 0]!;
    const deadline = Date.now() + HANG_MS;
    const call = client.makeServerStreamRequest(method, bytes, bytes, Buffer.from(message), { deadline });
    const { code, details, metadata } = await new Promise<StatusObject>((resolve) => {
      call.on('data', () => {});
      call.on('error', () => {});
      call.on('status', resolve);
    });
    expect([status.UNKNOWN, status.DEADLINE_EXCEEDED], details).not.toContain(code);
    // A surprise has the same status as bytes that are not a message; our code tells them apart.
    expect(metadata.get('llavacode-code'), details).not.toContain('internal');
    return code === status.OK;
  });
  for (const { pool } of [prefill.engine, decode.engine]) await until(() => pool.reserved === 0);
  expect((await prefill.client.describe(AbortSignal.timeout(HANG_MS))).role).toBe('prefill');
});
