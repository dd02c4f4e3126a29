/** The prefill service over gRPC: what it refuses, and that nothing stays behind. */
import { describe, expect, test } from 'vitest';
import { rowCount } from '../../services/lib/kv/layout.ts';
import { vectorBytes, type WireType } from '../../services/lib/kv/wire.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import type { PrefillRequest } from '../../services/lib/rpc/gen/llavacode/v1/PrefillRequest.ts';
import { samplingMessage } from '../../services/lib/rpc/messages.ts';
import { FakeEngine, gate, HIDDEN, LAYOUT, nextToken, until, VOCAB } from '../support/fake-engine.ts';
import { keepingLog } from '../support/keeping-log.ts';
import { SlowStore } from '../support/slow-store.ts';
import { begin, FINGERPRINT, NEVER, prefillRequest, refusal, stagedBytes, startPrefill } from '../support/workers.ts';

/** A caller that may hang up. */
function caller() {
  const controller = new AbortController();
  const reason = new Error('hung up');
  return { signal: controller.signal, reason, hangUp: () => controller.abort(reason) };
}

/** Holds the engine at its next chunks. */
function holdEngine(engine: FakeEngine) {
  const held = gate();
  engine.beforeChunk = () => held.opened;
  return held;
}

const softTokens = (positions: number[], elements = positions.length * HIDDEN) => ({
  soft: { positions, vectors: Buffer.alloc(elements * 4) },
});

describe('a prompt that is refused', () => {
  test.each<[string, PrefillRequest, Parameters<typeof refusal>]>([
    ['for another model', { fingerprint: 'e'.repeat(64) }, ['fingerprint_mismatch', FINGERPRINT]],
    ['without tokens', { tokenIds: [] }, ['invalid_request', 'no tokens']],
    [
      'as long as a slot',
      { tokenIds: new Array(32).fill(1) },
      ['context_length_exceeded', 'the prompt has 32 tokens, a slot holds 32'],
    ],
    ['with an id beyond the vocabulary', { tokenIds: [1, VOCAB] }, ['invalid_request', `token id ${VOCAB}`]],
    ['with a negative id', { tokenIds: [-1] }, ['invalid_request', 'token id -1']],
    ['without choices', { choices: [] }, ['invalid_request', 'choices']],
    ['with soft tokens beyond its end', softTokens([3]), ['invalid_request', 'soft position 3']],
    ['with a soft position that no int32 holds', softTokens([2 ** 32 - 1]), ['invalid_request', 'soft position']],
    ['with soft tokens that do not ascend', softTokens([0, 2, 1]), ['invalid_request', 'soft position 1 (number 2)']],
    ['with two soft tokens at one place', softTokens([1, 1]), ['invalid_request', 'soft position 1 (number 1)']],
    ['with too few vectors', softTokens([0, 1], HIDDEN), ['invalid_request', '2 soft tokens need 2 x 2']],
    ['with vectors and no positions', softTokens([], HIDDEN), ['invalid_request', '0 soft tokens']],
  ])('a prompt %s is refused', async (_, change, [code, message]) => {
    const { client, engine } = await startPrefill();
    const request = prefillRequest([1, 2, 3], change);
    await expect(begin(client, request)).rejects.toEqual(refusal(code, message));
    expect(engine.chunks).toEqual([]);
  });

  test('a prompt is refused while the process drains, and earlier ones are still computed and handed over', async () => {
    const drain = new AbortController();
    const { client, engine, kv, server } = await startPrefill({ draining: drain.signal });
    const held = holdEngine(engine);
    const [computing, waiting] = [begin(client, prefillRequest([1, 2])), begin(client, prefillRequest([3, 4]))];
    await computing;
    await until(async () => (await client.describe(NEVER)).queued === 4);
    drain.abort(new ServingError('draining', 'this process is shutting down'));
    const over = new AbortController();
    let isOver = false;
    const closed = server.close(over.signal).then(() => {
      isOver = true;
    });
    await expect(begin(client, prefillRequest([1]))).rejects.toEqual(refusal('draining'));
    await expect(client.describe(NEVER)).rejects.toEqual(refusal('draining'));
    held.open();
    for (const call of [computing, waiting]) {
      const staged = await call;
      await staged.first();
      expect(isOver).toBe(false);
      await kv.release(staged.kv.leaseId, NEVER);
      await staged.released();
    }
    await closed;
  });

  test('a prompt is refused with Retry-After when too many tokens wait', async () => {
    const { client, engine } = await startPrefill({ queueTokens: 10 });
    const held = holdEngine(engine);
    const running = begin(client, prefillRequest([1], { readers: 0 }));
    await running;
    const waiting = begin(client, prefillRequest(new Array(8).fill(1), { readers: 0 }));
    await until(async () => (await client.describe(NEVER)).queued === 9);
    const refused = begin(client, prefillRequest([1, 2, 3]));
    await expect(refused).rejects.toEqual(refusal('saturated'));
    await expect(refused).rejects.toMatchObject({ retryAfterSeconds: 1 });
    held.open();
    for (const prompt of [await running, await waiting]) {
      await prompt.first();
      await prompt.released();
    }
  });
});

describe('an answer of the prefill service', () => {
  test('a prompt without readers is answered with a handle, the first token, and the end', async () => {
    const { client, server, engine } = await startPrefill();
    const staged = await begin(client, prefillRequest([1, 2, 3, 4, 5], { readers: 0 }));
    expect(staged.kv).toMatchObject({ address: server.address, fingerprint: FINGERPRINT, positions: 5 });
    expect(await staged.first()).toEqual([nextToken([1, 2, 3, 4, 5])]);
    await staged.released();
    engine.pool.assertConserved(0);
  });

  test('the logprobs of the first token and of the prompt are reported', async () => {
    const { client } = await startPrefill();
    const choices = [samplingMessage({ ...GREEDY, logprobs: 1 })];
    const request = prefillRequest([1, 2, 3], { choices, promptLogprobs: 0, readers: 0 });
    const logTotal = Math.log(Math.E + VOCAB - 1);
    for await (const { first } of client.prefill(request, NEVER)) {
      if (!first) continue;
      const best = nextToken([1, 2, 3]);
      const logprob = expect.closeTo(1 - logTotal, 4);
      expect(first.tokens).toEqual([{ id: best, logprob, top: [{ id: best, logprob }] }]);
      expect(first.promptLogprobs.map(({ id }) => id)).toEqual([0, 2, 3]);
      expect(first.promptLogprobs[0]?.logprob).toBe(0);
      expect(first).toMatchObject({ chunks: 1, cachedTokens: 0 });
      return;
    }
    expect.fail('no first token');
  });

  test('Describe tells what the prefill worker is and how much waits', async () => {
    const { client, engine } = await startPrefill({}, new FakeEngine(2, 96));
    const held = holdEngine(engine);
    const long = Array.from({ length: 70 }, (_, i) => i % 20);
    const prompts = [begin(client, prefillRequest(long, { readers: 0 }))];
    await prompts[0];
    prompts.push(begin(client, prefillRequest([1, 2], { readers: 0 })));
    await until(async () => (await client.describe(NEVER)).queued === 72); // computing and waiting
    expect(await client.describe(NEVER)).toMatchObject({
      role: 'prefill',
      model: 'fake',
      fingerprint: FINGERPRINT,
      layout: { ...engine.pool.layout, dtype: 'float32' },
      capacity: 96,
      slots: 2,
      freeSlots: 1,
      prefillTokensPerSecond: 0,
    });
    held.open();
    for (const prompt of prompts) {
      await (await prompt).first();
      await (await prompt).released();
    }
    const idle = await client.describe(NEVER);
    expect(idle).toMatchObject({ queued: 0, freeSlots: 2 });
    expect(idle.prefillTokensPerSecond).toBeGreaterThan(0);
  });

  test('a warm worker knows its rate before the first prompt and holds no slot', async () => {
    const { client, engine, warmUp } = await startPrefill({}, new FakeEngine(2, 96));
    await warmUp();
    const warm = await client.describe(NEVER);
    expect(warm).toMatchObject({ queued: 0, freeSlots: 2 });
    expect(warm.prefillTokensPerSecond).toBeGreaterThan(0);
    expect(engine.chunks.map(({ ids }) => ids.length)).toEqual([16, 95]);
  });
});

describe('a staged cache', () => {
  const pull = async (
    kv: Awaited<ReturnType<typeof startPrefill>>['kv'],
    leaseId: string,
    fingerprint = FINGERPRINT,
  ) => {
    let frames = 0;
    for await (const _ of kv.pull({ leaseId, fingerprint }, NEVER)) frames++;
    return frames;
  };

  test('a staged cache can be pulled any number of times until it is released', async () => {
    const { client, kv } = await startPrefill();
    const staged = await begin(client, prefillRequest([1, 2, 3, 4, 5]));
    const { leaseId } = staged.kv;
    await staged.first();
    for (let i = 0; i < 3; i++) expect(await pull(kv, leaseId)).toBe(3); // manifest, rows, end
    expect(await stagedBytes()).toBeGreaterThan(0);
    await kv.release(leaseId, NEVER);
    await staged.released();
    await expect(pull(kv, leaseId)).rejects.toEqual(refusal('lease_unknown', leaseId));
    await expect(kv.release(leaseId, NEVER)).rejects.toEqual(refusal('lease_unknown', leaseId));
  });

  test('a pull for another model is refused', async () => {
    const { client, kv } = await startPrefill();
    const staged = await begin(client, prefillRequest([1]));
    const { leaseId } = staged.kv;
    await expect(pull(kv, leaseId, 'e'.repeat(64))).rejects.toEqual(refusal('fingerprint_mismatch', 'e'.repeat(64)));
    await kv.release(leaseId, NEVER);
    await staged.first();
    await staged.released();
  });

  test('a handle tells the time of its lease, which can be renewed until it is released', async () => {
    const { client, kv } = await startPrefill({ kvLeaseMs: 12_345 });
    const staged = await begin(client, prefillRequest([1, 2, 3, 4, 5]));
    const { leaseId, leaseMs } = staged.kv;
    expect(leaseMs).toBe(12_345);
    await staged.first();
    await kv.renew(leaseId, NEVER);
    await kv.release(leaseId, NEVER);
    await staged.released();
    await expect(kv.renew(leaseId, NEVER)).rejects.toEqual(refusal('lease_unknown'));
  });

  test('a staged cache expires when no decoder comes in time', async () => {
    const { client, kv, engine } = await startPrefill({ kvLeaseMs: 1 });
    const staged = await begin(client, prefillRequest([1, 2, 3, 4, 5]));
    expect(await staged.first()).toEqual([nextToken([1, 2, 3, 4, 5])]);
    await expect(staged.released()).rejects.toEqual(refusal('lease_expired', staged.kv.leaseId));
    await expect(pull(kv, staged.kv.leaseId)).rejects.toEqual(refusal('lease_unknown'));
    engine.pool.assertConserved(0);
  });

  test('a prompt that fails to compute fails for the caller and for the decoder', async () => {
    const { client, kv, engine } = await startPrefill();
    const held = gate();
    engine.beforeChunk = async ({ past }) => {
      if (past === 0) return;
      await held.opened;
      throw new ServingError('runtime_failed', 'the graph broke');
    };
    const staged = await begin(client, prefillRequest([1, 2, 3, 4, 5, 6]));
    const frames = kv.pull({ leaseId: staged.kv.leaseId, fingerprint: FINGERPRINT }, NEVER)[Symbol.asyncIterator]();
    await frames.next(); // manifest
    expect((await frames.next()).value?.rows).toMatchObject({ start: 0, end: 4 });
    held.open();
    await expect(frames.next()).rejects.toEqual(refusal('runtime_failed', 'the graph broke'));
    await expect(staged.first()).rejects.toEqual(refusal('runtime_failed', 'the graph broke'));
  });

  test.each(['float32', 'float16', 'int8'])(
    'a staged cache travels as %s when the puller asks for it',
    async (dtype) => {
      const { client, kv, engine } = await startPrefill();
      const { signal, hangUp } = caller();
      const staged = await begin(client, prefillRequest([5, 6, 7]), signal);
      await staged.first();
      let bytes = 0;
      for await (const frame of kv.pull({ leaseId: staged.kv.leaseId, fingerprint: FINGERPRINT, dtype }, NEVER)) {
        if (frame.manifest) expect(frame.manifest.layout?.dtype).toBe(dtype);
        bytes += frame.rows?.data.length ?? 0;
      }
      const { layout } = engine.pool;
      expect(bytes).toBe(rowCount(layout) * 3 * vectorBytes(dtype as WireType, layout.headDim));
      hangUp();
    },
  );

  test('a pull in an unknown form is refused', async () => {
    const { client, kv } = await startPrefill();
    const { signal, hangUp } = caller();
    const staged = await begin(client, prefillRequest([5, 6, 7]), signal);
    const frames = kv.pull({ leaseId: staged.kv.leaseId, fingerprint: FINGERPRINT, dtype: 'bfloat16' }, NEVER);
    await expect(frames[Symbol.asyncIterator]().next()).rejects.toEqual(refusal('kv_layout_mismatch'));
    hangUp();
  });

  test('a frame whose lease ends while a device reads it is not sent, and its slot is free only then', async () => {
    const read = gate();
    const engine = new FakeEngine(1, 32, LAYOUT, (memory) => new SlowStore(memory, () => read.opened));
    const { client, kv } = await startPrefill({}, engine);
    const { signal, reason, hangUp } = caller();
    const staged = await begin(client, prefillRequest([5, 6, 7]), signal);
    await staged.first();
    const frames = kv.pull({ leaseId: staged.kv.leaseId, fingerprint: FINGERPRINT }, NEVER)[Symbol.asyncIterator]();
    expect((await frames.next()).value?.manifest).toMatchObject({ positions: 3 });
    const rows = frames.next();
    await until(() => (engine.pool.memory as SlowStore).underWay === 1);
    hangUp();
    await expect(staged.released()).rejects.toBe(reason);
    await until(async () => (await stagedBytes()) === 0); // the lease has ended
    expect(engine.pool.reserved).toBe(1);
    read.open();
    await expect(rows).rejects.toEqual(refusal('lease_unknown'));
    await until(() => engine.pool.reserved === 0);
  });

  test('no more of a cache is sent when its lease ends between two frames', async () => {
    // A row is a frame of 1 MiB, so that most frames stay unsent while the reader does not read.
    const layout = { layers: 24, kvHeads: 1, headDim: 1024 };
    const engine = new FakeEngine(1, 258, layout);
    const { client, kv } = await startPrefill({ chunkTokens: () => 300 }, engine);
    const { signal, reason, hangUp } = caller();
    const staged = await begin(client, prefillRequest(new Array(257).fill(1)), signal);
    await staged.first();
    const frames = kv.pull({ leaseId: staged.kv.leaseId, fingerprint: FINGERPRINT }, NEVER);
    let received = 0;
    const reading = (async () => {
      for await (const frame of frames) {
        if (frame.rows && ++received === 1) {
          hangUp();
          await expect(staged.released()).rejects.toBe(reason);
          await until(() => engine.pool.reserved === 0);
          for (const { key, value } of engine.memory.layers) for (const tensor of [key, value]) tensor.fill(-1);
        }
        // Every frame that arrives was packed before the slot got other content.
        expect(frame.rows?.data.readFloatLE(0)).not.toBe(-1);
      }
    })();
    await expect(reading).rejects.toEqual(refusal('lease_unknown'));
    expect(received).toBeLessThan(48);
  });
});

describe('a caller of Prefill that hangs up', () => {
  test('a caller that hangs up while its prompt waits takes it out of the queue', async () => {
    const { client, engine } = await startPrefill();
    const held = holdEngine(engine);
    const running = await begin(client, prefillRequest([1], { readers: 0 }));
    const { signal, reason, hangUp } = caller();
    const waiting = begin(client, prefillRequest([1, 2]), signal);
    await until(async () => (await client.describe(NEVER)).queued === 3);
    hangUp();
    await expect(waiting).rejects.toBe(reason);
    await until(async () => (await client.describe(NEVER)).queued === 1);
    held.open();
    await running.first();
    await running.released();
    expect(engine.chunks).toHaveLength(1);
  });

  test('a caller that hangs up while its prompt computes ends the chunk and frees the slot', async () => {
    const { client, engine } = await startPrefill();
    holdEngine(engine); // only the abort ends the chunk
    const { signal, reason, hangUp } = caller();
    const staged = await begin(client, prefillRequest([1, 2, 3, 4, 5]), signal);
    const first = staged.first();
    hangUp();
    await expect(first).rejects.toBe(reason);
    await until(() => engine.pool.reserved === 0);
    expect(await stagedBytes()).toBe(0);
    expect(engine.chunks).toHaveLength(1);
  });

  test('a caller that hangs up while its cache is staged frees the slot', async () => {
    const { client, engine } = await startPrefill();
    const { signal, reason, hangUp } = caller();
    const staged = await begin(client, prefillRequest([1, 2, 3, 4, 5]), signal);
    await staged.first();
    const released = staged.released();
    expect(engine.pool.reserved).toBe(1);
    hangUp();
    await expect(released).rejects.toBe(reason);
    await until(() => engine.pool.reserved === 0);
    expect(await stagedBytes()).toBe(0);
  });
});

test('a prompt that is computed is logged at debug, with its request and its times', async () => {
  const lines: Record<string, unknown>[] = [];
  const { client } = await startPrefill({ log: keepingLog(lines) });
  await (await begin(client, prefillRequest([1, 2, 3, 4, 5], { requestId: 'r1', readers: 0 }))).first();
  const counts = { request_id: 'r1', prompt_tokens: 5, cached_tokens: 0 };
  const times = { restore_ms: 0, queue_ms: expect.any(Number), prefill_ms: expect.any(Number) };
  expect(lines).toEqual([{ level: 'debug', message: 'prompt computed', ...counts, ...times }]);
});
