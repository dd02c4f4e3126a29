/** Prompts and sequences in one process, over gRPC: nothing travels, nothing disturbs, nothing stays behind. */
import { describe, expect, test } from 'vitest';
import { metrics } from '../../services/lib/process/metrics.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { samplingMessage, softTokensMessage } from '../../services/lib/rpc/messages.ts';
import { continuation, FakeEngine, gate, HIDDEN, settle, tokensOf, until } from '../support/fake-engine.ts';
import {
  begin,
  decode,
  decodeRequest,
  NEVER,
  prefillRequest,
  refusal,
  startColocated,
  startDecode,
  startPrefill,
} from '../support/workers.ts';

const promptOf = (length: number, salt = 0) => Array.from({ length }, (_, i) => (i * 7 + salt) % 29);
const caller = () => {
  const controller = new AbortController();
  const reason = new Error('hung up');
  return { signal: controller.signal, reason, hangUp: () => controller.abort(reason) };
};
type Worker = Awaited<ReturnType<typeof startColocated>>;

async function complete(
  { client, decoder }: Worker,
  prompt: readonly number[],
  maxTokens: number,
  change: Parameters<typeof prefillRequest>[1] = {},
) {
  const staged = await begin(client, prefillRequest(prompt, change));
  const [first, { tokens, joined }] = await Promise.all([
    staged.firstEvent(),
    decode(decoder, decodeRequest(staged.kv, maxTokens)),
  ]);
  await staged.released();
  return { tokens: [first?.tokens[0]?.id, ...tokens], cachedTokens: first?.cachedTokens, joined };
}

describe('a completion', () => {
  test.each([1, 3, 4, 5, 8, 13, 20])('a prompt of %i tokens is computed and decoded in one slot', async (length) => {
    const worker = await startColocated();
    const prompt = promptOf(length);
    const { tokens, joined } = await complete(worker, prompt, 9);
    expect(tokens).toEqual(continuation(prompt, 9).tokens);
    expect(joined).toMatchObject({ handoffBytes: 0, queueUs: 0 });
    expect(new Set(worker.engine.chunks.map(({ slot }) => slot))).toEqual(new Set([0]));
    expect(new Set(worker.engine.steps.flat())).toEqual(new Set([0]));
  });

  test('several choices decode in copies, and the last one in the slot itself', async () => {
    const worker = await startColocated({}, new FakeEngine(3));
    const prompt = promptOf(7);
    const always = (id: number) => samplingMessage({ ...GREEDY, logitBias: new Map([[id, 5]]) });
    const choices = [samplingMessage(GREEDY), always(11), always(12)];
    const staged = await begin(worker.client, prefillRequest(prompt, { choices, readers: 3 }));
    const of = (choice: number) =>
      decode(worker.decoder, decodeRequest(staged.kv, 5, { choice, sampling: choices[choice] }));
    const all = await Promise.all([of(0), of(1), of(2)]);
    const greedy = continuation(prompt, 5).tokens;
    expect(all.map(({ tokens }) => tokens)).toEqual([greedy.slice(1), [11, 11, 11, 11], [12, 12, 12, 12]]);
    expect(await staged.first()).toEqual([greedy[0], 11, 12]);
    await staged.released();
  });

  test('with more choices than slots one is refused, and the others go on', async () => {
    const worker = await startColocated({}, new FakeEngine(2));
    const step = gate();
    worker.engine.beforeStep = () => step.opened;
    const choices = [1, 2, 3].map(() => samplingMessage(GREEDY));
    const staged = await begin(worker.client, prefillRequest(promptOf(7), { choices, readers: 3 }));
    await staged.first();
    const of = (choice: number) => decode(worker.decoder, decodeRequest(staged.kv, 5, { choice }));
    const first = of(0);
    await until(() => worker.engine.steps.length > 0);
    await expect(of(1)).rejects.toEqual(refusal('saturated'));
    const last = of(2);
    await staged.released(); // nobody has a lease to wait for
    step.open();
    const expected = continuation(promptOf(7), 5).tokens.slice(1);
    expect([(await first).tokens, (await last).tokens]).toEqual([expected, expected]);
  });

  test('a completion can end with its first token', async () => {
    const worker = await startColocated();
    const prompt = promptOf(5);
    expect((await complete(worker, prompt, 1)).tokens).toEqual(continuation(prompt, 1).tokens);
    expect(worker.engine.steps).toEqual([]);
  });
});

describe('prompts beside sequences', () => {
  test('prompts and decode steps take turns, and the chunks are smaller', async () => {
    const worker = await startColocated({}, new FakeEngine(2, 64));
    const { engine } = worker;
    const runs: string[] = [];
    engine.beforeChunk = ({ ids }) => {
      runs.push(`chunk of ${ids.length}`);
      return settle();
    };
    engine.beforeStep = () => {
      runs.push('step');
      return settle();
    };
    const first = complete(worker, promptOf(8), 40);
    await until(() => engine.steps.length > 1);
    const second = await complete(worker, promptOf(24, 1), 3);
    expect(second.tokens).toEqual(continuation(promptOf(24, 1), 3).tokens);
    expect((await first).tokens).toEqual(continuation(promptOf(8), 40).tokens);
    expect(runs[0]).toBe('chunk of 8');
    const from = runs.indexOf('chunk of 4');
    expect(runs.slice(from, from + 11)).toEqual([
      ...Array.from({ length: 5 }, () => ['chunk of 4', 'step']).flat(),
      'chunk of 4',
    ]);
  });

  test('a prompt gets the slot of a sequence when that ends', async () => {
    const worker = await startColocated({}, new FakeEngine(1));
    const { engine } = worker;
    const step = gate();
    engine.beforeStep = () => step.opened;
    const first = complete(worker, promptOf(5), 4);
    await until(() => engine.steps.length === 1);
    const second = complete(worker, promptOf(6, 1), 4);
    await until(async () => (await worker.client.describe(NEVER)).queued === 6);
    step.open();
    expect((await first).tokens).toEqual(continuation(promptOf(5), 4).tokens);
    expect((await second).tokens).toEqual(continuation(promptOf(6, 1), 4).tokens);
  });

  test('more prompts than may wait are refused', async () => {
    const worker = await startColocated({ queueTokens: 8 }, new FakeEngine(1));
    const { engine } = worker;
    const step = gate();
    engine.beforeStep = () => step.opened;
    const running = complete(worker, promptOf(5), 4);
    await until(() => engine.steps.length === 1);
    const waiting = complete(worker, promptOf(6, 1), 4);
    await until(async () => (await worker.client.describe(NEVER)).queued === 6);
    await expect(begin(worker.client, prefillRequest(promptOf(3)))).rejects.toEqual(refusal('saturated'));
    step.open();
    await Promise.all([running, waiting]);
  });

  test('a chunk that fails fails its prompt and its decoder, and other sequences go on', async () => {
    const worker = await startColocated();
    const { engine } = worker;
    const held = gate();
    engine.beforeStep = settle;
    engine.beforeChunk = async ({ ids }) => {
      if (ids[0] !== 28) return;
      await held.opened;
      throw new Error('the graph broke');
    };
    const good = complete(worker, promptOf(5), 20);
    await until(() => engine.steps.length > 1);
    const bad = await begin(worker.client, prefillRequest([1, 2, 3, 4, 28, 5]));
    const first = expect(bad.first()).rejects.toEqual(refusal('internal', 'the graph broke'));
    const decoding = decode(worker.decoder, decodeRequest(bad.kv, 3));
    const outcome = expect(decoding).rejects.toEqual(refusal('internal', 'the graph broke'));
    await worker.decoder.describe(NEVER); // answered: the call before it has begun
    held.open();
    await Promise.all([first, outcome]);
    expect((await good).tokens).toEqual(continuation(promptOf(5), 20).tokens);
  });
});

describe('a prompt that begins like an earlier one', () => {
  const soft = {
    positions: Int32Array.of(0, 1, 20),
    vectors: Float32Array.from({ length: 3 * HIDDEN }, (_, i) => i + 1),
  };
  const withSoft = (change = 0) => {
    const vectors = soft.vectors.slice();
    vectors[2 * HIDDEN] = (vectors[2 * HIDDEN] as number) + change;
    return { positions: soft.positions, vectors };
  };
  const cases: [string, readonly number[], Parameters<typeof prefillRequest>[1], number][] = [
    ['that continues an earlier one', [...promptOf(40), 5, 6], {}, 32],
    ['that equals the beginning of an earlier one', promptOf(32), {}, 30],
    ['of another tenant', promptOf(40), { cacheSalt: 'other' }, 0],
    ['with prompt logprobs', promptOf(40), { promptLogprobs: 0 }, 0],
    ['with logprobs of its end', promptOf(40), { promptLogprobs: 0, promptLogprobsFrom: 33 }, 32],
    ['with logprobs of more', promptOf(40), { promptLogprobs: 0, promptLogprobsFrom: 32 }, 16],
    ['that shares only the first block', [...promptOf(17), ...promptOf(30, 4)], {}, 16],
  ];

  test.each(cases)(
    'a prompt %s computes only the tokens that are not cached',
    async (_, prompt, change, cachedTokens) => {
      const worker = await startColocated({}, new FakeEngine(2, 96));
      await complete(worker, promptOf(40), 9);
      const computed = worker.engine.chunks.length;
      const second = await complete(worker, prompt, 9, change);
      expect(second.cachedTokens).toBe(cachedTokens);
      expect(second.tokens).toEqual(continuation(prompt, 9).tokens);
      const ids = worker.engine.chunks.slice(computed).flatMap((chunk) => [...chunk.ids]);
      expect(ids).toEqual(prompt.slice(cachedTokens));
    },
  );

  test('a prompt shares the KV of equal soft tokens up to the first one that differs', async () => {
    const worker = await startColocated({}, new FakeEngine(2, 96));
    const ids = promptOf(40);
    const ask = (tokens: ReturnType<typeof withSoft>) => complete(worker, ids, 9, { soft: softTokensMessage(tokens) });
    const expected = (tokens: ReturnType<typeof withSoft>) =>
      continuation(tokensOf({ ids: Int32Array.from(ids), soft: tokens }), 9).tokens;
    expect(await ask(withSoft())).toMatchObject({ cachedTokens: 0, tokens: expected(withSoft()) });
    expect(await ask(withSoft())).toMatchObject({ cachedTokens: 32, tokens: expected(withSoft()) });
    expect(await ask(withSoft(1))).toMatchObject({ cachedTokens: 16, tokens: expected(withSoft(1)) });
  });

  test('the shared beginning of a prompt that still decodes is copied', async () => {
    const worker = await startColocated({}, new FakeEngine(2, 96));
    const { engine } = worker;
    engine.beforeStep = settle;
    const first = complete(worker, promptOf(40), 50);
    await until(() => engine.steps.length > 2);
    const second = await complete(worker, promptOf(45), 20);
    expect(second.cachedTokens).toBe(32);
    expect(second.tokens).toEqual(continuation(promptOf(45), 20).tokens);
    expect((await first).tokens).toEqual(continuation(promptOf(40), 50).tokens);
  });

  test('a prompt continues from what was computed of one whose caller hung up', async () => {
    const worker = await startColocated({ prefillChunkTokens: 16 }, new FakeEngine(1, 96));
    const { engine, client } = worker;
    engine.beforeChunk = ({ past }) => (past >= 48 ? new Promise(() => {}) : undefined);
    await complete(worker, promptOf(35), 3);
    const { signal, reason, hangUp } = caller();
    const staged = await begin(client, prefillRequest(promptOf(70)), signal);
    await until(() => engine.chunks.at(-1)?.past === 48);
    const first = staged.first();
    hangUp();
    await expect(first).rejects.toBe(reason);
    engine.beforeChunk = ({ slot, past, ids }) => {
      expect([slot, past, ids.length]).toEqual([0, 48, 16]); // the chunk under way was stopped: nothing of it is of use
    };
    const other = [...promptOf(48), ...promptOf(16)];
    const again = await complete(worker, other, 9);
    expect(again.cachedTokens).toBe(48);
    expect(again.tokens).toEqual(continuation(other, 9).tokens);
  });
});

describe('a caller that hangs up', () => {
  const stages: [string, (worker: Worker) => { reached: () => boolean | Promise<boolean> }][] = [
    ['while its prompt waits', ({ client }) => ({ reached: async () => (await client.describe(NEVER)).queued > 20 })],
    [
      'while its prompt computes',
      ({ engine }) => {
        let last = false;
        engine.beforeChunk = ({ past }) => {
          last = past > 0;
          return last ? new Promise(() => {}) : undefined; // only the abort ends it
        };
        return { reached: () => last };
      },
    ],
    [
      'while it decodes',
      ({ engine }) => ({ reached: () => engine.steps.filter((slots) => slots.length > 1).length > 2 }),
    ],
  ];
  test.each(stages)('a caller that hangs up %s frees its slots, and others go on', async (name, prepare) => {
    const worker = await startColocated({}, new FakeEngine(name.includes('waits') ? 1 : 2, 64));
    const { engine, client, decoder } = worker;
    engine.beforeStep = settle;
    const other = complete(worker, promptOf(8), 50);
    await until(() => engine.steps.length > 0);
    if (name.includes('waits'))
      engine.beforeStep = () => new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
    const { signal, reason, hangUp } = caller();
    const stage = prepare(worker);
    const journey = (async () => {
      const staged = await begin(client, prefillRequest(promptOf(21, 3)), signal);
      await Promise.all([staged.first(), decode(decoder, decodeRequest(staged.kv, 40), signal)]);
    })();
    const outcome = expect(journey).rejects.toBe(reason);
    await until(stage.reached);
    hangUp();
    await outcome;
    engine.beforeChunk = () => {};
    expect((await other).tokens).toEqual(continuation(promptOf(8), 50).tokens);
    const again = await complete(worker, promptOf(21, 3), 9);
    expect(again.tokens).toEqual(continuation(promptOf(21, 3), 9).tokens);
  });

  test('a caller that hangs up before a decoder comes frees the slot', async () => {
    const worker = await startColocated({}, new FakeEngine(1));
    const { signal, reason, hangUp } = caller();
    const staged = await begin(worker.client, prefillRequest(promptOf(5)), signal);
    await staged.first();
    const released = staged.released();
    hangUp();
    await expect(released).rejects.toBe(reason);
    expect((await complete(worker, promptOf(6), 5)).tokens).toEqual(continuation(promptOf(6), 5).tokens);
  });

  test('the caller of Prefill gets the first token even if the caller of Decode hangs up', async () => {
    const worker = await startColocated();
    const held = gate();
    worker.engine.beforeChunk = () => held.opened;
    const { signal, reason, hangUp } = caller();
    const staged = await begin(worker.client, prefillRequest(promptOf(5)));
    const decoding = decode(worker.decoder, decodeRequest(staged.kv, 5), signal);
    const outcome = expect(decoding).rejects.toBe(reason);
    await worker.decoder.describe(NEVER); // answered: the call before it has begun
    hangUp();
    await outcome;
    await worker.decoder.describe(NEVER);
    held.open();
    expect(await staged.first()).toEqual(continuation(promptOf(5), 1).tokens);
    await staged.released();
  });
});

describe('KV of another process', () => {
  test('KV travels between colocated workers as between any two workers', async () => {
    const worker = await startColocated();
    const [prefill, decoder] = await Promise.all([startPrefill(), startDecode()]);
    const prompt = promptOf(9);
    const expected = continuation(prompt, 6).tokens;
    for (const [from, to] of [
      [prefill.client, worker.decoder],
      [worker.client, decoder.client],
    ] as const) {
      const staged = await begin(from, prefillRequest(prompt));
      const { tokens, joined } = await decode(to, decodeRequest(staged.kv, 6));
      expect([...(await staged.first()), ...tokens]).toEqual(expected);
      expect(Number(joined?.handoffBytes)).toBeGreaterThan(0);
      await staged.released();
    }
  });

  test('KV of another process gets a slot between local prompts and sequences', async () => {
    const worker = await startColocated({}, new FakeEngine(3, 64));
    worker.engine.beforeStep = settle;
    worker.engine.beforeChunk = settle;
    const prefill = await startPrefill();
    const foreign = async (salt: number) => {
      const prompt = promptOf(11, salt);
      const staged = await begin(prefill.client, prefillRequest(prompt));
      const { tokens } = await decode(worker.decoder, decodeRequest(staged.kv, 15));
      expect([...(await staged.first()), ...tokens]).toEqual(continuation(prompt, 15).tokens);
      await staged.released();
    };
    const own = async (salt: number) => {
      const prompt = promptOf(9 + salt, salt);
      expect((await complete(worker, prompt, 15)).tokens).toEqual(continuation(prompt, 15).tokens);
    };
    await Promise.all(Array.from({ length: 6 }, (_, i) => [foreign(i), own(i + 10)]).flat());
  });

  test('the slot of a sequence from another process goes to the prompt that waits', async () => {
    const worker = await startColocated({}, new FakeEngine(1));
    const prefill = await startPrefill();
    const step = gate();
    worker.engine.beforeStep = () => step.opened;
    const staged = await begin(prefill.client, prefillRequest(promptOf(5)));
    const foreign = decode(worker.decoder, decodeRequest(staged.kv, 4));
    await until(() => worker.engine.steps.length === 1);
    const own = complete(worker, promptOf(6), 4);
    await until(async () => (await worker.client.describe(NEVER)).queued === 6);
    step.open();
    expect((await foreign).tokens).toEqual(continuation(promptOf(5), 4).tokens.slice(1));
    expect((await own).tokens).toEqual(continuation(promptOf(6), 4).tokens);
    await staged.first();
    await staged.released();
  });

  test('sequences of another process and local prompts get slots in order of arrival, and the gauge counts both', async () => {
    const worker = await startColocated({}, new FakeEngine(1));
    const prefill = await startPrefill({}, new FakeEngine(3));
    const waiting = async () => (await metrics.waiting.get()).values[0]?.value ?? 0;
    const before = await waiting();
    const step = gate();
    worker.engine.beforeStep = () => step.opened;
    const order: string[] = [];
    const own = async (name: string, salt: number) => {
      await complete(worker, promptOf(6, salt), 4);
      order.push(name);
    };
    const foreign = async (name: string, salt: number) => {
      const staged = await begin(prefill.client, prefillRequest(promptOf(6, salt)));
      await decode(worker.decoder, decodeRequest(staged.kv, 4));
      order.push(name);
      await staged.first();
      await staged.released();
    };
    const all: Promise<void>[] = [own('runs', 1)];
    await until(() => worker.engine.steps.length === 1);
    for (const [i, go] of [own, foreign, own, foreign].entries()) {
      all.push(go(`${i}`, i + 2));
      await until(async () => (await waiting()) === before + i + 1);
    }
    step.open();
    await Promise.all(all);
    expect(order).toEqual(['runs', '0', '1', '2', '3']);
    expect(await waiting()).toBe(before);
  });

  test('a sequence of another process gets the slot of a prompt whose caller hangs up', async () => {
    const worker = await startColocated({}, new FakeEngine(1));
    const prefill = await startPrefill();
    const { signal, reason, hangUp } = caller();
    const own = await begin(worker.client, prefillRequest(promptOf(5)), signal);
    await own.first();
    const staged = await begin(prefill.client, prefillRequest(promptOf(6)));
    const foreign = decode(worker.decoder, decodeRequest(staged.kv, 4));
    await until(async () => (await worker.decoder.describe(NEVER)).queued === 1);
    const released = own.released();
    hangUp();
    await expect(released).rejects.toBe(reason);
    expect((await foreign).tokens).toEqual(continuation(promptOf(6), 4).tokens.slice(1));
    await staged.first();
    await staged.released();
  });
});
