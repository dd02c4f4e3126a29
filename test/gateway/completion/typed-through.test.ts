/** A request that is an earlier one, and what was typed of its output. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { ChoiceDelta } from '../../../services/gateway/completion/choice.ts';
import { RequestRecord } from '../../../services/gateway/completion/request-record.ts';
import { completionBody } from '../../../services/gateway/http/completion-body.ts';
import { clientGone } from '../../../services/gateway/http/errors.ts';
import { Deferred } from '../../../services/lib/async/deferred.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { settle, until } from '../../support/fake-engine.ts';
import { type FakeGateway, type FakeGatewayOptions, fakeGateway, idOf, tokenizer } from '../../support/fake-gateway.ts';
import type { FakeModel, Trouble } from '../../support/fake-workers.ts';

const WORDS = ['a', ' b', '\n', '    ', 'return', ' x', '(', ')', '.pop', ' = ', '1', 'foo', '\n\n', 'é', ':'];
const VOCABULARY = [...new Set(WORDS.flatMap((word) => [...tokenizer.encode(word)]))];
const END = idOf('<|endoftext|>');

/**
 * A model that goes by all tokens before, and where it draws also by seed and output position, as real workers do.
 * Every so often its text is over.
 * @param prior tokens at the end of `before` that are output.
 */
function* chained(before: readonly number[], prior: number, seed: number | undefined): Generator<number, never> {
  const fold = (sum: number, each: number) => (sum * 31 + each) % 1_000_003;
  let sum = before.reduce(fold, 7);
  for (let at = prior; ; at++) {
    const drawn = seed === undefined ? 0 : seed * 17 + at * 13;
    const id = sum % 41 === 0 ? END : VOCABULARY[(sum + drawn) % VOCABULARY.length]!;
    yield id;
    sum = fold(sum, id);
  }
}

/** A gateway whose model is chained: it answers one request at a time. */
async function chainedGateway(options: FakeGatewayOptions = {}, draws = false): Promise<FakeGateway> {
  const gateway: FakeGateway = await fakeGateway(
    {
      token: (position, _, seed) => {
        const { tokenIds = [], choices } = gateway.workers.prefills.at(-1)!;
        const prior = choices?.[0]?.priorOutputIds?.length ?? 0;
        const model = chained(tokenIds, prior, draws ? seed : undefined);
        let id = 0;
        for (let at = prior; at <= position; at++) id = model.next().value;
        return id;
      },
    },
    options,
  );
  return gateway;
}

const GREEDY = { max_tokens: 12, temperature: 0 };

type Taken = (delta: ChoiceDelta) => Promise<void> | undefined;

/** A request on its way, without HTTP. @param taken when the client has taken a part of its answer. */
function ask({ journey }: Pick<FakeGateway, 'journey'>, body: object, tenant = 't', taken?: Taken) {
  const record = new RequestRecord();
  const left = new AbortController();
  const deltas: ChoiceDelta[] = [];
  const emit = (delta: ChoiceDelta) => {
    deltas.push(delta);
    return taken?.(delta);
  };
  const deadlineMs = performance.now() + 60_000;
  const request = completionBody.parse({ ...GREEDY, ...body });
  const done = journey.complete(request, { id: 'r', tenant, record, signal: left.signal, deadlineMs, emit });
  done.catch(() => {});
  return {
    done,
    record,
    leave: (reason: ServingError = clientGone()) => left.abort(reason),
    get ids() {
      return deltas.flatMap(({ tokenIds }) => tokenIds);
    },
    get text() {
      return deltas.map(({ text }) => text).join('');
    },
    get finish() {
      return deltas.at(-1)?.finishReason;
    },
  };
}

async function answered(gateway: FakeGateway, body: object, tenant?: string) {
  const request = ask(gateway, body, tenant);
  await request.done;
  const { ids, text, finish, record } = request;
  return { ids, text, finish, usage: record.usage, computed: record.computedTokens };
}

const prompts = fc.array(fc.constantFrom(...WORDS), { minLength: 1, maxLength: 30 }).map((words) => words.join(''));
/** How much of the output is typed, in characters, and what else. */
const prefixes = fc.array(fc.tuple(fc.nat(30), fc.constantFrom('', '', '', 'b', ' 1')), {
  minLength: 10,
  maxLength: 10,
});

describe('the answer is that of a new computation', () => {
  test.each([
    ['greedy', {}, false],
    ['seeded', { temperature: 1, seed: 11 }, true],
  ])(
    'for 5,000 prefixes of %s outputs',
    async (_, asked, draws) => {
      const gateway = await chainedGateway({ typedThrough: 'exact' }, draws);
      let [round, shared] = [0, 0];
      const property = fc.asyncProperty(
        prompts,
        prefixes,
        fc.integer({ min: 1, max: 20 }),
        async (prompt, typed, most) => {
          const request = { ...asked, cache_salt: `${round++}` };
          const first = await answered(gateway, { ...request, prompt });
          for (const [length, more] of typed) {
            const next = prompt + first.text.slice(0, length) + more;
            const { ids, usage, finish, computed } = await answered(gateway, {
              ...request,
              prompt: next,
              max_tokens: most,
            });
            const model = chained([...tokenizer.leadingIds, ...tokenizer.encode(next)], 0, draws ? 11 : undefined);
            const expected: number[] = [];
            while (expected.length < most && expected.at(-1) !== END) expected.push(model.next().value);
            expect(ids).toEqual(expected);
            expect(finish).toBe(expected.at(-1) === END ? 'stop' : 'length');
            expect(usage.completionTokens).toBe(expected.length);
            if (computed < usage.promptTokens + ids.length) shared++;
          }
          gateway.workers.prefills.length = gateway.workers.decodes.length = 0;
        },
      );
      await fc.assert(property, { numRuns: 500 });
      // Draws depend on the output position, which is another one in a new computation.
      if (draws) expect(shared).toBe(0);
      else expect(shared).toBeGreaterThan(200);
    },
    240_000,
  );

  test('with stop strings, ends of code and logprobs, whole and streamed', async () => {
    const [one, other] = [await chainedGateway(), await chainedGateway({ typedThrough: 'off' })];
    const asks = [{ stop: ['\n'] }, { stop_at: 'line' }, { presence_penalty: 1 }, { min_tokens: 3 }, { session: 's' }];
    let round = 0;
    const property = fc.asyncProperty(prompts, fc.constantFrom(...asks), fc.nat(5), async (prompt, asked, typed) => {
      const body = { ...GREEDY, ...asked, logprobs: 1, return_token_ids: true, cache_salt: `${round++}` };
      const first = (await one.complete({ ...body, prompt })).choices[0]!;
      const next = { ...body, prompt: prompt + tokenizer.decode(first.token_ids!.slice(0, typed)) };
      const expected = await other.complete(next);
      expect((await one.complete(next)).choices).toEqual(expected.choices);
      const text = (await one.stream(next)).map((event) => event.choices[0]?.text ?? '').join('');
      expect(text).toBe(expected.choices[0]!.text);
    });
    await fc.assert(property, { numRuns: 100 });
  }, 60_000);
});

/** A model that spells a text, and goes on a step at a time when the test says so. */
function spelled(text: string, trouble?: FakeModel['trouble']): FakeModel {
  const ids = tokenizer.encode(text);
  return { token: (position) => ids[position] ?? END, ...(trouble && { trouble }) };
}
const TEXT = ' return self.items.pop() if self.items else None';
const IDS = tokenizer.encode(TEXT);
const typed = (tokens: number) => tokenizer.decode(IDS.slice(0, tokens));

/** Decode calls stop at an output position until they are ended. */
const hangsAt = (position: number) => (at: Trouble) =>
  at.stage === 'in decode' && at.position === position ? ('hang' as const) : undefined;

describe('a stream goes on for the next request', () => {
  const session = { session: 's', max_tokens: 40 };

  test('while it runs, and both have their answers of one computation, which is charged once', async () => {
    const gateway = await fakeGateway(spelled(TEXT, hangsAt(6)));
    const first = ask(gateway, { ...session, prompt: 'x =' });
    await until(() => first.ids.length === 6);
    const second = ask(gateway, { ...session, prompt: `x =${typed(2)}` });
    await until(() => second.ids.length === 4);
    expect(second.text).toBe(tokenizer.decode(IDS.slice(2, 6)));
    expect(gateway.workers.prefills).toHaveLength(1);
    first.leave();
    await expect(first.done).rejects.toMatchObject({ code: 'client_gone' });
    await settle();
    expect(gateway.workers.open).toBeGreaterThan(0); // it goes on for the second
    expect(second.record.computedTokens).toBe(0);
    expect(first.record.computedTokens).toBe(first.record.usage.promptTokens + 6);
    second.leave();
    await expect(second.done).rejects.toMatchObject({ code: 'client_gone' });
    await gateway.workers.idle();
  });

  test('also when the next request of the session has superseded it', async () => {
    const before =
      (await metrics.typedThrough.get()).values.find(({ labels }) => labels.output === 'running')?.value ?? 0;
    const gateway = await fakeGateway(spelled(TEXT, hangsAt(6)));
    const first = ask(gateway, { ...session, prompt: 'x =' });
    await until(() => first.ids.length === 6);
    first.leave(new ServingError('superseded', 'a newer request came'));
    await expect(first.done).rejects.toMatchObject({ code: 'superseded' });
    const second = ask(gateway, { ...session, prompt: `x =${typed(3)}` });
    await until(() => second.ids.length === 3);
    expect(gateway.workers.prefills).toHaveLength(1);
    const after = (await metrics.typedThrough.get()).values.find(({ labels }) => labels.output === 'running')!.value;
    expect(after).toBe(before + 1);
    second.leave();
    await gateway.workers.idle();
  });

  test('and is ended at once if the next request of the session is another one', async () => {
    const gateway = await fakeGateway(spelled(TEXT, hangsAt(6)));
    const first = ask(gateway, { ...session, prompt: 'x =' });
    await until(() => first.ids.length === 6);
    first.leave(new ServingError('superseded', 'a newer request came'));
    await expect(first.done).rejects.toMatchObject({ code: 'superseded' });
    gateway.workers.model.trouble = () => undefined;
    await answered(gateway, { ...session, prompt: 'y = ' });
    await gateway.workers.idle();
    expect(gateway.workers.prefills).toHaveLength(2);
  });

  test('what was made before a client hung up is not made again', async () => {
    const gateway = await fakeGateway(spelled(TEXT, hangsAt(6)));
    const first = ask(gateway, { ...session, prompt: 'x =' });
    await until(() => first.ids.length === 6);
    first.leave();
    await gateway.workers.idle();
    gateway.workers.model.trouble = () => undefined;
    const ids = [...IDS.slice(2), END];
    gateway.workers.model.token = (position) => ids[position] ?? END;
    const second = await answered(gateway, { ...session, prompt: `x =${typed(2)}` });
    expect([second.ids, second.finish]).toEqual([ids, 'stop']);
    expect(gateway.workers.prefills[1]!.tokenIds).toHaveLength(second.usage.promptTokens + 4);
    expect(second.usage.completionTokens).toBe(ids.length);
    expect(second.computed).toBe(second.usage.promptTokens + ids.length - 4);
  });

  test('a later request goes on by itself where the stream of the earlier one fails', async () => {
    const others = { morePrefill: ['p2'], moreDecode: ['d2'], stallTimeoutMs: 100 };
    const gateway = await fakeGateway(spelled(TEXT, hangsAt(6)), others);
    const first = ask(gateway, { ...session, prompt: 'x =' });
    await until(() => first.ids.length === 6);
    const second = ask(gateway, { ...session, prompt: `x =${typed(2)}` });
    await until(() => second.ids.length === 4);
    gateway.workers.model.trouble = () => undefined;
    gateway.workers.model.token = (position) => [...IDS.slice(2), END][position] ?? END;
    await expect(first.done).rejects.toMatchObject({ code: 'worker_stalled' });
    await second.done;
    expect(second.ids).toEqual([...IDS.slice(2), END]);
    await gateway.workers.idle();
  });
});

describe('fill-in-the-middle', () => {
  const fim = { prompt: 'x =', suffix: '\ny', session: 's', max_tokens: 40 };

  test.each(['psm', 'spm'] as const)(
    'what was typed may stand before the cursor, within a session, %s',
    async (promptOrder) => {
      const gateway = await fakeGateway(spelled(TEXT), { promptOrder });
      await answered(gateway, fim);
      const next = { ...fim, prompt: `x =${typed(3)}` };
      expect((await answered(gateway, next)).ids).toEqual([...IDS.slice(3), END]);
      expect(gateway.workers.prefills).toHaveLength(1);
      await answered(gateway, { ...next, suffix: '\nz' });
      await answered(gateway, { ...next, session: null });
      expect(gateway.workers.prefills).toHaveLength(3);
    },
  );

  test('goes on with nothing where only exact answers are wanted', async () => {
    const gateway = await fakeGateway(spelled(TEXT), { typedThrough: 'exact' });
    await answered(gateway, fim);
    await answered(gateway, { ...fim, prompt: `x =${typed(3)}` });
    expect(gateway.workers.prefills).toHaveLength(2);
  });
});

test('streams of another tenant, salt or temperature are never found', async () => {
  const gateway = await fakeGateway(spelled(TEXT));
  const next = { prompt: `x =${typed(3)}` };
  await answered(gateway, { prompt: 'x =' });
  for (const [body, tenant] of [
    [{}, 'u'],
    [{ cache_salt: 'c' }, 't'],
    [{ temperature: 0.5 }, 't'],
    [{ stop_token_ids: [5] }, 't'],
  ] as const) {
    const before = gateway.workers.prefills.length;
    await answered(gateway, { ...next, ...body }, tenant);
    expect(gateway.workers.prefills).toHaveLength(before + 1);
  }
  const before = gateway.workers.prefills.length;
  expect((await answered(gateway, next)).ids).toEqual([...IDS.slice(3), END]);
  expect(gateway.workers.prefills).toHaveLength(before);
});

test('a drawn output without a seed goes to one request only', async () => {
  const gateway = await fakeGateway(spelled(TEXT));
  const drawn = { temperature: 1, max_tokens: 40 };
  await answered(gateway, { ...drawn, prompt: 'x =' });
  const next = { ...drawn, prompt: `x =${typed(3)}` };
  expect((await answered(gateway, next)).ids).toEqual([...IDS.slice(3), END]);
  expect(gateway.workers.prefills).toHaveLength(1);
  await answered(gateway, next);
  expect(gateway.workers.prefills).toHaveLength(2);
});

describe('after a client has hung up', () => {
  const asked = { prompt: 'x =', max_tokens: 40 };

  /** A request whose client has gone at the sixth token. */
  async function left(options: FakeGatewayOptions) {
    const gateway = await fakeGateway(spelled(TEXT, hangsAt(6)), options);
    const first = ask(gateway, asked);
    await until(() => first.ids.length === 6);
    first.leave();
    await expect(first.done).rejects.toMatchObject({ code: 'client_gone' });
    return gateway;
  }
  const lingering = async () => (await metrics.lingering.get()).values[0]?.value;

  test('its stream goes on for --linger-ms, and the next keystroke finds it', async () => {
    const gateway = await left({ lingerMs: 60_000 });
    expect([gateway.workers.open > 0, await lingering()]).toEqual([true, 1]);
    const second = ask(gateway, { ...asked, prompt: `x =${typed(2)}` });
    await until(() => second.ids.length === 4);
    expect(gateway.workers.prefills).toHaveLength(1);
    second.leave(new ServingError('deadline_exceeded', 'late'));
    await gateway.workers.idle();
    await until(async () => (await lingering()) === 0);
  });

  test('it ends without --linger-ms, and when its time is over', async () => {
    expect((await left({})).workers.open).toBe(0);
    const gateway = await left({ lingerMs: 30 });
    await gateway.workers.idle();
    expect(await lingering()).toBe(0);
  });

  test.each([
    ['client_gone', 0, true],
    ['client_gone', 60_000, false],
    ['superseded', 60_000, false],
    ['deadline_exceeded', 60_000, true],
  ] as const)('that was busy with what it had: %s, --linger-ms %i', async (code, lingerMs, ends) => {
    const gateway = await fakeGateway(spelled(TEXT, hangsAt(6)), { lingerMs });
    const sent = new Deferred<void>();
    const first = ask(gateway, asked, 't', () => sent.promise);
    await until(() => first.ids.length === 1);
    first.leave(new ServingError(code, 'it has gone'));
    if (ends)
      await gateway.workers.idle(); // at once, and not when the client has taken the first token
    else await settle();
    expect([gateway.workers.open > 0, await lingering()]).toEqual([!ends, ends ? 0 : 1]);
    sent.resolve();
    await expect(first.done).rejects.toMatchObject({ code });
    gateway.draining.abort(new ServingError('draining', 'shutting down'));
    await gateway.workers.idle();
  });

  test('while it was sent the end of its code, nothing goes on', async () => {
    const gateway = await fakeGateway(spelled('a\nb', hangsAt(3)), { lingerMs: 60_000 });
    const sent = new Deferred<void>();
    const atEnd: Taken = ({ finishReason }) => (finishReason === null ? undefined : sent.promise);
    const first = ask(gateway, { ...asked, stop_at: 'line' }, 't', atEnd);
    await until(() => first.finish === 'stop');
    first.leave();
    sent.resolve();
    await Promise.allSettled([first.done]);
    await gateway.workers.idle();
  }, 10_000);

  describe.each([
    ['stop_at', { stop_at: 'line' }],
    ['stop', { stop: ['\n'] }],
  ])('its stream ends where %s would have ended the answer', (_, ends) => {
    const text = 'a = b\nc = d\ne = f\n';
    const ids = tokenizer.encode(text);
    const line = tokenizer.encode('a = b');
    const rest = (tokens: number) => tokenizer.decode(line.slice(tokens));

    test.each([
      ['hung up', clientGone(), {}],
      ['was superseded', new ServingError('superseded', 'a newer request came'), { session: 's' }],
    ])('whose client %s at the first token, and the next keystroke has all of it', async (__, reason, session) => {
      // 5 tokens are the line and its end; the model hangs well behind it, as long as the stream goes on.
      const gateway = await fakeGateway(spelled(text, hangsAt(ids.length - 2)), { lingerMs: 60_000 });
      const body = { ...asked, ...ends, ...session };
      const first = ask(gateway, body, 't', () => void first.leave(reason));
      await expect(first.done).rejects.toMatchObject({ code: reason.code });
      await gateway.workers.idle();
      const second = await answered(gateway, {
        ...body,
        max_tokens: 40,
        prompt: `x =${tokenizer.decode(line.slice(0, 1))}`,
      });
      expect(second.text.trimEnd()).toBe(rest(1));
      expect(gateway.workers.prefills).toHaveLength(1);
    });

    test('also when the one that left it last had gone on with it', async () => {
      const gateway = await fakeGateway(spelled(text, hangsAt(3)), { lingerMs: 60_000 });
      const first = ask(gateway, asked);
      await until(() => first.ids.length === 3);
      const second = ask(gateway, { ...asked, ...ends, prompt: `x =${tokenizer.decode(ids.slice(0, 1))}` });
      await until(() => second.ids.length === 2);
      first.leave();
      await settle();
      expect(gateway.workers.open).toBeGreaterThan(0);
      second.leave();
      await settle();
      expect(gateway.workers.open).toBeGreaterThan(0); // the answer of the second is not at its end
      gateway.draining.abort(new ServingError('draining', 'shutting down'));
      await gateway.workers.idle();
    });
  });

  test('it ends when prompts wait for workers, and when the gateway drains', async () => {
    const gateway = await left({ lingerMs: 60_000 });
    gateway.draining.abort(new ServingError('draining', 'shutting down'));
    await gateway.workers.idle();
    const full = await fakeGateway({ ...spelled(TEXT, hangsAt(6)), slots: 1 }, { lingerMs: 60_000 });
    const requests = [1, 2, 3].map((i) => ask(full, { ...asked, prompt: `${i}` }));
    await until(() => requests.filter(({ ids }) => ids.length === 6).length === 2); // one runs, one is next
    requests.find(({ ids }) => ids.length === 6)!.leave();
    await until(() => requests.every(({ ids }) => ids.length === 6));
    for (const request of requests) request.leave(new ServingError('deadline_exceeded', 'late'));
    await full.workers.idle();
  });
});
