/** The decode service over gRPC, with a made-up holder of the KV cache that may break the rules. */
import { describe, expect, onTestFinished, test } from 'vitest';
import { type KvRows, KvSender } from '../../services/lib/kv/handoff.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import type { DecodeRequest } from '../../services/lib/rpc/gen/llavacode/v1/DecodeRequest.ts';
import type { KvFrame } from '../../services/lib/rpc/gen/llavacode/v1/KvFrame.ts';
import type { KvHandle__Output } from '../../services/lib/rpc/gen/llavacode/v1/KvHandle.ts';
import { samplingMessage } from '../../services/lib/rpc/messages.ts';
import { mount, serveRpc, streaming, unary } from '../../services/lib/rpc/server.ts';
import { continuation, FakeEngine, gate, nextToken, until } from '../support/fake-engine.ts';
import { keepingLog } from '../support/keeping-log.ts';
import { packed } from '../support/kv-rows.ts';
import { decode, decodeRequest, FINGERPRINT, NEVER, refusal, startDecode } from '../support/workers.ts';

const PROMPT = [3, 1, 4, 1, 5];
const CUT = AbortSignal.abort();

/** The frames that a prefill worker would send for PROMPT: manifest, two of rows, end. */
async function packPrompt(): Promise<KvFrame[]> {
  const engine = new FakeEngine(1);
  engine.write(0, 0, PROMPT);
  const sender = new KvSender(engine.pool.store, 0);
  const rows = await packed(sender, [2, PROMPT.length]);
  const layout = { ...engine.pool.layout, dtype: 'float32' };
  return [
    { manifest: { fingerprint: FINGERPRINT, layout, positions: PROMPT.length } },
    // Copied, because the buffers are used again once they are serialised.
    ...rows.map((frame) => ({ rows: { ...frame, data: Uint8Array.from(frame.data) } })),
    { end: { ...sender.end([nextToken(PROMPT)]), afterPrefillUs: 5 } },
  ];
}

const FRAMES = await packPrompt();
const goodFrames = () => [...FRAMES];

/** @param pull the answer to the n-th pull, from 1 on. */
async function startHolder(pull: (attempt: number) => AsyncIterable<KvFrame> | Iterable<KvFrame> = goodFrames) {
  const holder = {
    pulls: 0,
    releases: 0,
    renewals: 0,
    gone: false,
    leftEarly: 0,
    kv: {} as KvHandle__Output,
    stop: () => server.close(CUT),
  };
  const server = await serveRpc('127.0.0.1', 0, [
    mount.kv({
      Pull: streaming(async function* (_, signal) {
        signal.addEventListener('abort', () => holder.leftEarly++);
        yield* pull(++holder.pulls);
      }),
      Renew: unary(async () => {
        holder.renewals++;
        if (holder.gone) throw new ServingError('lease_unknown', 'no such lease');
        return {};
      }),
      Release: unary(async () => ({ readersLeft: ++holder.releases && 0 })),
    }),
  ]);
  holder.kv = {
    address: server.address,
    leaseId: 'lease',
    fingerprint: FINGERPRINT,
    positions: PROMPT.length,
    leaseMs: 400,
    seal: Buffer.alloc(0),
  };
  onTestFinished(() => server.close(CUT));
  return holder;
}

function damaged(frames: KvFrame[]): KvFrame[] {
  const rows = frames[1]?.rows as KvRows;
  const data = Uint8Array.from(rows.data);
  data[0] = (data[0] as number) ^ 1;
  return frames.with(1, { rows: { ...rows, data } });
}

test('a decode worker continues what prefill began and releases the KV once', async () => {
  const [holder, { client, engine }] = await Promise.all([startHolder(), startDecode()]);
  const { joined, tokens, finishReason } = await decode(client, decodeRequest(holder.kv, 7));
  expect(tokens).toEqual(continuation(PROMPT, 7).tokens.slice(1));
  expect(finishReason).toBe('length');
  expect(Number(joined?.handoffExposedUs)).toBe(5);
  await until(() => holder.releases === 1);
  engine.pool.assertConserved(0);
});

test('decoding stops at a stop id', async () => {
  const [holder, { client }] = await Promise.all([startHolder(), startDecode()]);
  const all = continuation(PROMPT, 20).tokens;
  const stop = all[5] as number;
  const at = all.indexOf(stop, 1);
  const sampling = samplingMessage({ ...GREEDY, stopTokenIds: [stop] });
  expect(await decode(client, decodeRequest(holder.kv, 20, { sampling }))).toMatchObject({
    tokens: all.slice(1, at + 1),
    finishReason: 'stop',
  });
});

test('a sequence that leaves is logged at debug, with its request, its tokens and what its hand-over took', async () => {
  const lines: Record<string, unknown>[] = [];
  const [holder, { client }] = await Promise.all([startHolder(), startDecode({ log: keepingLog(lines) })]);
  await decode(client, { ...decodeRequest(holder.kv, 7), requestId: 'r1', choice: 0 });
  await until(() => lines.length > 0);
  expect(lines).toEqual([
    {
      level: 'debug',
      message: 'sequence left',
      request_id: 'r1',
      choice: 0,
      prompt_tokens: PROMPT.length,
      decoded_tokens: 6,
      queue_ms: expect.any(Number),
      handoff_ms: expect.any(Number),
      handoff_bytes: expect.any(Number),
    },
  ]);
});

test('logprobs are reported if they were asked for', async () => {
  const [holder, { client }] = await Promise.all([startHolder(), startDecode()]);
  const sampling = samplingMessage({ ...GREEDY, logprobs: 1 });
  for await (const { step } of client.decode(decodeRequest(holder.kv, 2, { sampling }), NEVER)) {
    if (!step) continue;
    expect(step.tokens[0]?.logprob).toBeLessThan(0);
    expect(step.tokens[0]?.top).toEqual([{ id: step.tokens[0]?.id, logprob: step.tokens[0]?.logprob }]);
  }
});

test('a slot that is reserved during a step is filled only after that step', async () => {
  const [holder, { client, engine }] = await Promise.all([startHolder(), startDecode()]);
  const gates = [gate(), gate(), gate(), gate()];
  engine.beforeStep = () => gates[engine.steps.length - 1]?.opened;
  const step = (n: number) => until(() => engine.steps.length === n);
  const caller = new AbortController();
  const given = decode(client, decodeRequest(holder.kv, 20), caller.signal);
  const outcome = expect(given).rejects.toThrowError('hung up');
  await step(1);
  const long = decode(client, decodeRequest(holder.kv, 9));
  await until(() => engine.pool.reserved === 2);
  gates[0]?.open();
  await until(() => holder.releases === 2);
  gates[1]?.open();
  await step(3);
  caller.abort(new Error('hung up'));
  await outcome;
  await client.describe(NEVER); // answered: the worker has heard of it
  gates[2]?.open();
  await step(4);
  expect(engine.steps).toEqual([[0], [0], [0, 1], [1]]); // slot 0 rides along in the last one
  const next = decode(client, decodeRequest(holder.kv, 9));
  await until(() => engine.pool.reserved === 2);
  for (let answers = 0; answers < 5; answers++) await client.describe(NEVER);
  expect(holder.pulls).toBe(2);
  gates[3]?.open();
  const { tokens } = continuation(PROMPT, 9);
  expect([(await long).tokens, (await next).tokens]).toEqual([tokens.slice(1), tokens.slice(1)]);
});

describe('a request that is refused before anything is pulled', () => {
  test.each<[string, (kv: KvHandle__Output) => DecodeRequest, Parameters<typeof refusal>]>([
    ['without a handle', (kv) => ({ ...decodeRequest(kv, 2), kv: null }), ['invalid_request', 'kv is missing']],
    [
      'without sampling',
      (kv) => ({ ...decodeRequest(kv, 2), sampling: null }),
      ['invalid_request', 'sampling is missing'],
    ],
    ['for no tokens', (kv) => decodeRequest(kv, 0), ['invalid_request', 'max_tokens is 0']],
    [
      'with the cache of another model',
      (kv) => decodeRequest({ ...kv, fingerprint: 'e'.repeat(64) }, 2),
      ['fingerprint_mismatch', 'e'.repeat(64)],
    ],
    [
      'for more than a slot holds',
      (kv) => decodeRequest(kv, 28),
      ['context_length_exceeded', '5 prompt tokens + max_tokens 28 exceed the 32'],
    ],
  ])('a request %s is refused', async (_, request, [code, message]) => {
    const [holder, { client }] = await Promise.all([startHolder(), startDecode()]);
    await expect(decode(client, request(holder.kv))).rejects.toEqual(refusal(code, message));
    expect(holder.pulls).toBe(0);
  });

  test('every request is refused while the worker drains', async () => {
    const draining = AbortSignal.abort(new ServingError('draining', 'this process is shutting down'));
    const [holder, { client }] = await Promise.all([startHolder(), startDecode({ draining })]);
    await expect(decode(client, decodeRequest(holder.kv, 2))).rejects.toEqual(refusal('draining'));
    await expect(client.describe(NEVER)).rejects.toEqual(refusal('draining'));
  });

  test('a request is refused when too many sequences wait, and its cache stays for another decoder', async () => {
    const engine = new FakeEngine(1);
    const step = gate();
    engine.beforeStep = () => step.opened;
    const [holder, { client }] = await Promise.all([startHolder(), startDecode({ queueSequences: 1 }, engine)]);
    const running = decode(client, decodeRequest(holder.kv, 3));
    await until(() => engine.steps.length === 1);
    const waiting = decode(client, decodeRequest(holder.kv, 3));
    await until(async () => (await client.describe(NEVER)).queued === 1);
    await expect(decode(client, decodeRequest(holder.kv, 3))).rejects.toEqual(refusal('saturated'));
    step.open();
    const tokens = continuation(PROMPT, 3).tokens.slice(1);
    expect([(await running).tokens, (await waiting).tokens]).toEqual([tokens, tokens]);
    await until(() => holder.releases === 2);
    expect(holder.pulls).toBe(2);
  });

  test('a request that fills a slot to the last position is accepted', async () => {
    const [holder, { client }] = await Promise.all([startHolder(), startDecode()]);
    const { tokens } = await decode(client, decodeRequest(holder.kv, 27));
    expect(tokens).toEqual(continuation(PROMPT, 27).tokens.slice(1));
  });
});

describe('a cache that does not arrive whole', () => {
  test('a cache that was damaged on the way is pulled once more', async () => {
    const [holder, { client }] = await Promise.all([
      startHolder((attempt) => (attempt === 1 ? damaged(goodFrames()) : goodFrames())),
      startDecode(),
    ]);
    const { tokens } = await decode(client, decodeRequest(holder.kv, 4));
    expect(tokens).toEqual(continuation(PROMPT, 4).tokens.slice(1));
    expect(holder.pulls).toBe(2);
  });

  const [manifest] = goodFrames() as [{ manifest: NonNullable<KvFrame['manifest']> }];
  const changed = (change: NonNullable<KvFrame['manifest']>) => () =>
    goodFrames().with(0, { manifest: { ...manifest.manifest, ...change } });
  const { layout } = manifest.manifest;
  test.each<[string, () => KvFrame[], number, Parameters<typeof refusal>]>([
    ['that is damaged each time', () => damaged(goodFrames()), 2, ['kv_digest_mismatch', 'frame 0']],
    ['that is cut off before its end', () => goodFrames().slice(0, -1), 2, ['kv_truncated', 'ended the KV stream']],
    ['that is cut off at once', () => [], 2, ['kv_truncated']],
    ['without its first rows', () => goodFrames().toSpliced(1, 1), 2, ['kv_truncated']],
    ['without its last rows', () => goodFrames().toSpliced(2, 1), 2, ['kv_truncated']],
    ['without its manifest', () => goodFrames().slice(1), 2, ['kv_truncated']],
    ['of another layout', changed({ layout: { ...layout, kvHeads: 3 } }), 1, ['kv_layout_mismatch', '3 kv heads']],
    ['of another type', changed({ layout: { ...layout, dtype: 'float16' } }), 1, ['kv_layout_mismatch', 'float16']],
    ['of another model', changed({ fingerprint: 'e'.repeat(64) }), 1, ['fingerprint_mismatch', 'e'.repeat(64)]],
    ['that is longer than a slot', changed({ positions: 32 }), 1, ['context_length_exceeded', '32 positions']],
    ['that is longer than its handle says', changed({ positions: 6 }), 1, ['invalid_request', 'says 5 positions']],
  ])('a cache %s is refused', async (_, frames, pulls, [code, message]) => {
    const [holder, { client, engine }] = await Promise.all([startHolder(frames), startDecode()]);
    await expect(decode(client, decodeRequest(holder.kv, 4))).rejects.toEqual(refusal(code, message));
    expect(holder.pulls).toBe(pulls);
    expect(engine.steps).toEqual([]);
    engine.pool.assertConserved(0);
    await until(() => holder.releases === 1); // this reader will never come
  });

  test.each(['lease_expired', 'lease_unknown', 'client_gone'] as const)(
    'the error %s of the holder is passed on',
    async (code) => {
      const pull = async function* () {
        yield* goodFrames().slice(0, 2);
        throw new ServingError(code, 'no more of it');
      };
      const [holder, { client }] = await Promise.all([startHolder(pull), startDecode()]);
      await expect(decode(client, decodeRequest(holder.kv, 4))).rejects.toEqual(refusal(code, 'no more of it'));
      expect(holder.pulls).toBe(1);
    },
  );

  test.each(['runtime_failed', 'draining', 'internal'] as const)(
    'a cache whose holder fails with %s is lost, and not asked for again: this worker is not to blame',
    async (code) => {
      const pull = async function* () {
        yield* goodFrames().slice(0, 2);
        throw new ServingError(code, 'no more of it');
      };
      const [holder, { client }] = await Promise.all([startHolder(pull), startDecode()]);
      await expect(decode(client, decodeRequest(holder.kv, 4))).rejects.toEqual(
        refusal('kv_truncated', 'the worker that held the KV failed: no more of it'),
      );
      expect(holder.pulls).toBe(1);
    },
  );

  test('a cache whose holder cannot be reached is lost', async () => {
    const [holder, { client }] = await Promise.all([startHolder(), startDecode()]);
    await holder.stop();
    await expect(decode(client, decodeRequest(holder.kv, 4))).rejects.toEqual(
      refusal('kv_truncated', `the worker that held the KV is lost: ${holder.kv.address}`),
    );
  });

  test('a cache whose holder dies while it sends is lost', async () => {
    const sent = gate();
    const pull = async function* () {
      yield* goodFrames().slice(0, 2);
      sent.open();
      await new Promise(() => {});
    };
    const [holder, { client }] = await Promise.all([startHolder(pull), startDecode()]);
    const decoding = decode(client, decodeRequest(holder.kv, 4));
    const outcome = expect(decoding).rejects.toEqual(
      refusal('kv_truncated', `the worker that held the KV is lost: ${holder.kv.address}`),
    );
    await sent.opened;
    await holder.stop();
    await outcome;
  });

  test('a choice that prefill did not make is refused', async () => {
    const [holder, { client }] = await Promise.all([startHolder(), startDecode()]);
    const request = decodeRequest(holder.kv, 4, { choice: 1 });
    await expect(decode(client, request)).rejects.toEqual(refusal('invalid_request', 'choice 1 of 1'));
  });
});

test('a step that fails ends its sequences with the cause, and later ones decode', async () => {
  const [holder, { client, engine }] = await Promise.all([startHolder(), startDecode()]);
  engine.beforeStep = () => {
    if (engine.steps.length === 2) throw new ServingError('runtime_failed', 'the graph broke');
  };
  await expect(decode(client, decodeRequest(holder.kv, 9))).rejects.toEqual(refusal('runtime_failed'));
  engine.pool.assertConserved(0);
  const { tokens } = await decode(client, decodeRequest(holder.kv, 9));
  expect(tokens).toEqual(continuation(PROMPT, 9).tokens.slice(1));
});

test('Describe tells what the decode worker is', async () => {
  const { client, engine } = await startDecode();
  expect(await client.describe(NEVER)).toMatchObject({
    role: 'decode',
    model: 'fake',
    fingerprint: FINGERPRINT,
    layout: { ...engine.pool.layout, dtype: 'float32' },
    capacity: 32,
    slots: 2,
    freeSlots: 2,
    queued: 0,
  });
});

describe('a sequence that waits for a slot', () => {
  /** One slot, taken by a sequence whose first step does not end. */
  async function crowded() {
    const engine = new FakeEngine(1);
    const step = gate();
    engine.beforeStep = () => step.opened;
    const [holder, { client }] = await Promise.all([startHolder(), startDecode({}, engine)]);
    const running = decode(client, decodeRequest(holder.kv, 3));
    await until(() => engine.steps.length === 1);
    const waiting = decode(client, decodeRequest(holder.kv, 3));
    return { holder, running, waiting, finish: step.open };
  }

  test('a sequence that waits for a slot renews the lease of its KV cache', async () => {
    const { holder, running, waiting, finish } = await crowded();
    await until(() => holder.renewals >= 2);
    finish();
    await Promise.all([running, waiting]);
    const { renewals } = holder;
    expect(holder.pulls).toBe(2);
    await until(() => holder.releases === 2);
    expect(holder.renewals).toBe(renewals); // the cache is pulled, so there is no lease to renew
  });

  test('a sequence stops waiting for a slot when its KV cache is lost', async () => {
    const { holder, running, waiting, finish } = await crowded();
    holder.gone = true;
    await expect(waiting).rejects.toEqual(refusal('lease_unknown'));
    finish();
    await running;
    expect(holder.pulls).toBe(1);
  });
});

describe('a caller of Decode that hangs up', () => {
  function caller() {
    const controller = new AbortController();
    const reason = new Error('hung up');
    return { signal: controller.signal, reason, hangUp: () => controller.abort(reason) };
  }

  test('a caller that hangs up while it waits for a slot leaves the cache alone, and the next one gets the slot', async () => {
    const engine = new FakeEngine(1);
    const step = gate();
    engine.beforeStep = () => step.opened;
    const [holder, { client }] = await Promise.all([startHolder(), startDecode({}, engine)]);
    const running = decode(client, decodeRequest(holder.kv, 3));
    await until(() => engine.steps.length === 1);
    const { signal, reason, hangUp } = caller();
    const impatient = decode(client, decodeRequest(holder.kv, 3), signal);
    await until(async () => (await client.describe(NEVER)).queued === 1);
    const patient = decode(client, decodeRequest(holder.kv, 3));
    await until(async () => (await client.describe(NEVER)).queued === 2);
    hangUp();
    await expect(impatient).rejects.toBe(reason);
    await until(async () => (await client.describe(NEVER)).queued === 1);
    step.open();
    await Promise.all([running, patient]);
    expect(holder.pulls).toBe(2);
  });

  test('a caller that hangs up during the pull ends it, and the holder is told', async () => {
    const sent = gate();
    const pull = async function* () {
      yield* goodFrames().slice(0, 2);
      sent.open();
      await new Promise(() => {});
    };
    const [holder, { client, engine }] = await Promise.all([startHolder(pull), startDecode()]);
    const { signal, reason, hangUp } = caller();
    const decoding = decode(client, decodeRequest(holder.kv, 3), signal);
    await sent.opened;
    hangUp();
    await expect(decoding).rejects.toBe(reason);
    await until(() => engine.pool.reserved === 0 && holder.leftEarly === 1 && holder.releases === 1);
    expect(holder.pulls).toBe(1);
  });

  test('the slot of a caller that hangs up while it decodes is free only after the current step', async () => {
    const [holder, { client, engine }] = await Promise.all([startHolder(), startDecode()]);
    const step = gate();
    engine.beforeStep = () => (engine.steps.length === 3 ? step.opened : undefined);
    const { signal, reason, hangUp } = caller();
    const decoding = decode(client, decodeRequest(holder.kv, 20), signal);
    await until(() => engine.steps.length === 3);
    hangUp();
    await expect(decoding).rejects.toBe(reason);
    // A sequence that comes now gets another slot.
    const other = decode(client, decodeRequest(holder.kv, 2));
    await until(async () => (await client.describe(NEVER)).freeSlots === 0);
    step.open();
    expect((await other).tokens).toEqual(continuation(PROMPT, 2).tokens.slice(1));
    await until(() => engine.pool.reserved === 0);
    expect(engine.steps.slice(3)).toEqual([[1]]);
  });
});
