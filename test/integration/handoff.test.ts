/** A completion from the prefill to the decode service: what comes out is what one engine alone would say. */
import { describe, expect, test } from 'vitest';
import { positionBytes } from '../../services/lib/kv/layout.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { samplingMessage, softTokensMessage } from '../../services/lib/rpc/messages.ts';
import { continuation, FakeEngine, GARBAGE, gate, LAYOUT, settle, tokensOf, until } from '../support/fake-engine.ts';
import {
  begin,
  decode,
  decodeRequest,
  FINGERPRINT,
  NEVER,
  prefillRequest,
  refusal,
  stagedBytes,
  startDecode,
  startPrefill,
} from '../support/workers.ts';

const promptOf = (length: number, salt = 0) => Array.from({ length }, (_, i) => (i * 7 + salt) % 29);

async function workers(slots = 2) {
  const [prefill, decoder] = await Promise.all([
    startPrefill({}, new FakeEngine(slots)),
    startDecode({}, new FakeEngine(slots)),
  ]);
  return { prefill, decoder };
}

/** Holds the prefill engine before the chunk that begins at a position. */
function holdAt(engine: FakeEngine, past: number) {
  const held = gate();
  engine.beforeChunk = (chunk) => (chunk.past === past ? held.opened : undefined);
  return held;
}

describe('one completion', () => {
  test.each([1, 3, 4, 5, 8, 13])(
    'a prompt of %i tokens, in chunks of 4, is handed over and continued',
    async (length) => {
      const { prefill, decoder } = await workers();
      const prompt = promptOf(length);
      const expected = continuation(prompt, 9);
      const staged = await begin(prefill.client, prefillRequest(prompt));
      const { joined, tokens, finishReason } = await decode(decoder.client, decodeRequest(staged.kv, 9));
      expect([...(await staged.first()), ...tokens]).toEqual(expected.tokens);
      expect(finishReason).toBe(expected.finishReason);
      await staged.released();
      expect(Number(joined?.handoffBytes)).toBe(length * positionBytes(LAYOUT));
      expect(await stagedBytes()).toBe(0);
    },
  );

  test('a prompt with soft tokens, in several chunks, is handed over and continued', async () => {
    const { prefill, decoder } = await workers();
    const soft = { positions: Int32Array.of(0, 1, 5, 9), vectors: Float32Array.of(1, 0, 2, 0, 3, 0, 4, 0) };
    const ids = promptOf(10);
    const request = prefillRequest(ids, { soft: softTokensMessage(soft) });
    const staged = await begin(prefill.client, request);
    const { tokens } = await decode(decoder.client, decodeRequest(staged.kv, 6));
    const expected = continuation(tokensOf({ ids: Int32Array.from(ids), soft }), 6).tokens;
    expect([...(await staged.first()), ...tokens]).toEqual(expected);
    await staged.released();
  });

  test('two decoders continue several choices from one cache, which stays until the last choice has it', async () => {
    const { prefill, decoder } = await workers();
    const other = await startDecode();
    const prompt = promptOf(7);
    const always = (id: number) => samplingMessage({ ...GREEDY, logitBias: new Map([[id, 5]]) });
    const choices = [samplingMessage(GREEDY), always(11), always(12)];
    const staged = await begin(prefill.client, prefillRequest(prompt, { choices, readers: 3 }));
    const of = (choice: number) => decodeRequest(staged.kv, 5, { choice, sampling: choices[choice] });
    const greedy = continuation(prompt, 5).tokens;
    expect((await decode(decoder.client, of(0))).tokens).toEqual(greedy.slice(1));
    expect((await decode(other.client, of(1))).tokens).toEqual([11, 11, 11, 11]);
    expect(prefill.engine.pool.reserved).toBe(1);
    expect((await decode(decoder.client, of(2))).tokens).toEqual([12, 12, 12, 12]);
    expect(await staged.first()).toEqual([greedy[0], 11, 12]);
    await staged.released();
  });

  test('an output that ends with its first token needs no decode step', async () => {
    const { prefill, decoder } = await workers();
    const prompt = promptOf(5);
    const [first] = continuation(prompt, 1).tokens as [number];
    const sampling = samplingMessage({ ...GREEDY, stopTokenIds: [first] });
    const staged = await begin(prefill.client, prefillRequest(prompt, { readers: 2 }));
    expect(await decode(decoder.client, decodeRequest(staged.kv, 5, { sampling }))).toMatchObject({
      tokens: [],
      finishReason: 'stop',
    });
    expect(await decode(decoder.client, decodeRequest(staged.kv, 1))).toMatchObject({
      tokens: [],
      finishReason: 'length',
    });
    await staged.first();
    await staged.released();
    expect(decoder.engine.steps).toEqual([]);
  });
});

test('more prompts at once than two decoders have slots are each continued as if alone', async () => {
  const { prefill, decoder } = await workers(3);
  const other = await startDecode({}, new FakeEngine(2));
  for (const { engine } of [decoder, other]) engine.beforeStep = settle; // a step takes its time
  const journeys = Array.from({ length: 24 }, async (_, i) => {
    const prompt = promptOf(1 + (i % 11), i);
    const expected = continuation(prompt, 10, [3, 17]);
    const sampling = samplingMessage({ ...GREEDY, stopTokenIds: [3, 17] });
    const staged = await begin(prefill.client, prefillRequest(prompt, { choices: [sampling] }));
    const { client } = i % 2 ? decoder : other;
    const { tokens, finishReason } = await decode(client, decodeRequest(staged.kv, 10, { sampling }));
    expect([...(await staged.first()), ...tokens]).toEqual(expected.tokens);
    expect(finishReason).toBe(expected.finishReason);
    await staged.released();
  });
  await Promise.all(journeys);
  expect(decoder.engine.steps.some((slots) => slots.length > 1)).toBe(true);
});

describe('overlap', () => {
  test('frames of a finished chunk arrive while the next one computes', async () => {
    const { prefill } = await workers();
    const held = holdAt(prefill.engine, 4);
    const staged = await begin(prefill.client, prefillRequest(promptOf(10)));
    const frames = prefill.kv.pull({ leaseId: staged.kv.leaseId, fingerprint: FINGERPRINT }, NEVER);
    const next = async () => (await frames[Symbol.asyncIterator]().next()).value;
    expect((await next())?.manifest).toMatchObject({ positions: 10, fingerprint: FINGERPRINT });
    expect((await next())?.rows).toMatchObject({ start: 0, end: 4 });
    expect(prefill.engine.chunks).toHaveLength(2); // the second one is held
    held.open();
    expect((await next())?.rows?.start).toBe(4);
    while (await next());
    await prefill.kv.release(staged.kv.leaseId, NEVER);
    await staged.first();
    await staged.released();
  });

  test('the decoder has the first chunk in its slot before the second one is computed', async () => {
    const { prefill, decoder } = await workers();
    const held = holdAt(prefill.engine, 4);
    const prompt = promptOf(9);
    const staged = await begin(prefill.client, prefillRequest(prompt));
    const decoding = decode(decoder.client, decodeRequest(staged.kv, 4));
    await until(() => decoder.engine.row(0, 7, 3, 4).some((element) => element !== 0));
    expect(decoder.engine.read(0, 4)).toEqual(prompt.slice(0, 4));
    expect(prefill.engine.chunks).toHaveLength(2);
    held.open();
    expect((await decoding).tokens).toEqual(continuation(prompt, 4).tokens.slice(1));
    await staged.first();
    await staged.released();
  });

  test('a slot that fills while others decode is whole when it joins', async () => {
    const decoder = await startDecode({}, new FakeEngine(3));
    decoder.engine.beforeStep = settle; // so that both outer sequences are in the batch at once
    // Three prompts on three workers, each held before its last chunk: they take slots 0, 1 and 2 in turn.
    const begun = await Promise.all(
      [1, 2, 3].map(async (seed) => {
        const { client, engine } = await startPrefill();
        return { client, prompt: promptOf(6, seed), held: holdAt(engine, 4) };
      }),
    );
    const running: { staged: Awaited<ReturnType<typeof begin>>; decoding: ReturnType<typeof decode> }[] = [];
    for (const [slot, { client, prompt }] of begun.entries()) {
      const staged = await begin(client, prefillRequest(prompt));
      running.push({ staged, decoding: decode(decoder.client, decodeRequest(staged.kv, 6)) });
      await until(() => decoder.engine.row(slot, 0, 3, 4).some((element) => element !== 0));
    }
    const [low, slow, high] = begun as [(typeof begun)[0], (typeof begun)[0], (typeof begun)[0]];
    low.held.open();
    high.held.open();
    for (const i of [0, 2]) {
      const { tokens } = await running[i]!.decoding;
      expect(tokens).toEqual(continuation(begun[i]!.prompt, 6).tokens.slice(1));
    }
    // The slot in between rode along: the steps wrote right behind what it will hold.
    expect(decoder.engine.steps).toContainEqual([0, 2]);
    expect(decoder.engine.read(1, 4)).toEqual(slow.prompt.slice(0, 4));
    expect(decoder.engine.row(1, 0, 6, 7)[0]).toBe(GARBAGE * 64);
    slow.held.open();
    expect((await running[1]!.decoding).tokens).toEqual(continuation(slow.prompt, 6).tokens.slice(1));
    for (const { staged } of running) {
      await staged.first();
      await staged.released();
    }
  });
});

describe('a prompt that begins like an earlier one', () => {
  async function longWorkers() {
    const [prefill, decoder] = await Promise.all([
      startPrefill({}, new FakeEngine(2, 96)),
      startDecode({}, new FakeEngine(2, 96)),
    ]);
    const complete = async (prompt: readonly number[]) => {
      const staged = await begin(prefill.client, prefillRequest(prompt));
      const { tokens } = await decode(decoder.client, decodeRequest(staged.kv, 9));
      const first = await staged.firstEvent();
      expect([first?.tokens[0]?.id, ...tokens]).toEqual(continuation(prompt, 9).tokens);
      await staged.released();
      return first?.cachedTokens;
    };
    return { prefill, decoder, complete };
  }

  test('a prompt that begins like an earlier one is handed over whole, however much of it was computed', async () => {
    const { complete, prefill } = await longWorkers();
    expect(await complete(promptOf(50))).toBe(0);
    const computed = prefill.engine.chunks.length;
    expect(await complete([...promptOf(50), 1])).toBe(48);
    expect(prefill.engine.chunks.slice(computed).map(({ past, ids }) => [past, ids.length])).toEqual([[48, 3]]);
    expect(await complete(promptOf(20))).toBe(16);
    expect(await complete(promptOf(60))).toBe(48);
  });

  test('a prompt that begins like an earlier one can be pulled as far as it is known before anything is computed', async () => {
    const { complete, prefill, decoder } = await longWorkers();
    await complete(promptOf(40));
    const held = holdAt(prefill.engine, 32);
    const prompt = [...promptOf(36), 1, 2];
    const staged = await begin(prefill.client, prefillRequest(prompt));
    const decoding = decode(decoder.client, decodeRequest(staged.kv, 4));
    await until(() => decoder.engine.pool.reserved === 1 && decoder.engine.row(0, 7, 31, 32).some((x) => x !== 0));
    await until(() => decoder.engine.read(0, 32).length === 32);
    expect(decoder.engine.read(0, 32)).toEqual(prompt.slice(0, 32));
    held.open();
    expect((await decoding).tokens).toEqual(continuation(prompt, 4).tokens.slice(1));
    await staged.first();
    await staged.released();
  });
});

describe('given up', () => {
  const caller = () => {
    const controller = new AbortController();
    return {
      signal: controller.signal,
      reason: new Error('hung up'),
      abort: (error: Error) => controller.abort(error),
    };
  };

  test('when the caller of Prefill gives up while a decoder pulls, the decoder hears of it', async () => {
    const { prefill, decoder } = await workers();
    holdAt(prefill.engine, 4); // only the abort ends the chunk
    const { signal, abort, reason } = caller();
    const staged = await begin(prefill.client, prefillRequest(promptOf(8)), signal);
    const decoding = decode(decoder.client, decodeRequest(staged.kv, 5));
    const outcome = expect(decoding).rejects.toEqual(refusal('lease_unknown', staged.kv.leaseId));
    await until(() => decoder.engine.row(0, 0, 3, 4).some((element) => element !== 0));
    const first = staged.first();
    abort(reason);
    await expect(first).rejects.toBe(reason);
    await outcome;
    await until(() => prefill.engine.pool.reserved + decoder.engine.pool.reserved === 0);
  });

  test('when decode is given up while it pulls, its slot is free at once, and the prompt goes on to its first token', async () => {
    const { prefill, decoder } = await workers();
    const held = holdAt(prefill.engine, 4);
    const { signal, abort, reason } = caller();
    const prompt = promptOf(8);
    const staged = await begin(prefill.client, prefillRequest(prompt));
    const decoding = decode(decoder.client, decodeRequest(staged.kv, 5), signal);
    await until(() => decoder.engine.row(0, 0, 3, 4).some((element) => element !== 0));
    abort(reason);
    await expect(decoding).rejects.toBe(reason);
    await until(() => decoder.engine.pool.reserved === 0);
    held.open();
    expect(await staged.first()).toEqual(continuation(prompt, 1).tokens);
    await staged.released();
  });

  test('a prompt that was given up and is asked again gives the same output', async () => {
    const { prefill, decoder } = await workers(1);
    const prompt = promptOf(8);
    const expected = continuation(prompt, 12).tokens;
    for (const stopAfter of [0, 1, 4]) {
      const { signal, abort, reason } = caller();
      const staged = await begin(prefill.client, prefillRequest(prompt), signal);
      const tokens: (number | undefined)[] = [];
      const stream = decoder.client.decode(decodeRequest(staged.kv, 12), signal)[Symbol.asyncIterator]();
      await stream.next(); // joined
      for (let i = 0; i < stopAfter; i++) tokens.push((await stream.next()).value?.step?.tokens[0]?.id);
      expect(tokens).toEqual(expected.slice(1, 1 + stopAfter));
      abort(reason);
      await expect(stream.next()).rejects.toBe(reason);
    }
    const staged = await begin(prefill.client, prefillRequest(prompt));
    expect((await decode(decoder.client, decodeRequest(staged.kv, 12))).tokens).toEqual(expected.slice(1));
    await staged.first();
    await staged.released();
    await settle();
    expect(await stagedBytes()).toBe(0);
  });
});
