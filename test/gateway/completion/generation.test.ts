import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { FairQueue } from '../../../services/gateway/admission/fair-queue.ts';
import { RequestRecord } from '../../../services/gateway/completion/request-record.ts';
import { completionBody } from '../../../services/gateway/http/completion-body.ts';
import { NO_KEYS } from '../../../services/gateway/tenants/api-keys.ts';
import { Deferred } from '../../../services/lib/async/deferred.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { type Answer, type FakeGateway, fakeGateway } from '../../support/fake-gateway.ts';
import type { FakeModel, Trouble } from '../../support/fake-workers.ts';

test('of many long echoes each is built when the one before is out', async () => {
  const { journey } = await fakeGateway({ token: () => 70 });
  const request = completionBody.parse({ prompt: 'x', n: 8, max_tokens: 0, echo: true, logprobs: 1 });
  let [open, most, came] = [0, 0, 0];
  const emit = async () => {
    came++;
    most = Math.max(most, ++open);
    await nextTurn();
    open--;
  };
  const signal = new AbortController().signal;
  const deadlineMs = performance.now() + 60_000;
  await journey.complete(request, { id: 'r', tenant: 't', record: new RequestRecord(), signal, deadlineMs, emit });
  expect([came, most]).toEqual([8, 1]);
});

/** Draws depend on (seed, position) alone, as those of real workers. */
const bySeed: FakeModel = { token: (position, _, seed) => 70 + ((position * 7 + seed) % 20) };

/** A stream put together to the answer that it stands for. */
async function streamed(gateway: FakeGateway, body: object) {
  const events = await gateway.stream({ ...body, stream_options: { include_usage: true } });
  const choices = new Map<number, { text: string; ids: number[]; finish: string | null }>();
  for (const { index, text, token_ids, finish_reason } of events.flatMap((event) => event.choices)) {
    const choice = choices.get(index) ?? { text: '', ids: [], finish: null };
    choice.text += text;
    choice.ids.push(...(token_ids ?? []));
    choice.finish ??= finish_reason;
    choices.set(index, choice);
  }
  return { choices: [...choices].sort(([a], [b]) => a - b), usage: events.at(-1)!.usage };
}

describe('choices in rounds', () => {
  const body = { prompt: 'x = ', n: 16, seed: 5, max_tokens: 12, return_token_ids: true };

  test('more choices than slots are what they are with a slot for each, whole and streamed', async () => {
    for (const asked of [body, { ...body, logprobs: 2, echo: true }, { ...body, n: 3, best_of: 16 }]) {
      const [few, many] = await Promise.all([4, 16].map((slots) => fakeGateway({ ...bySeed, slots })));
      const { choices, usage } = await many!.complete(asked);
      expect(await few!.complete(asked)).toMatchObject({ status: 200, choices, usage });
      if (!('best_of' in asked)) expect(await streamed(few!, asked)).toEqual(await streamed(many!, asked));
      await few!.workers.idle();
      expect(many!.workers.prefills.length).toBeLessThan(few!.workers.prefills.length);
      expect(few!.workers.prefills[0]!.choices).toHaveLength(6); // the slots, and half as many that wait
    }
  });

  test('the prompt is counted once, and its logprobs are computed once, however many rounds it takes', async () => {
    const before = (await metrics.promptTokens.get()).values[0]?.value ?? 0;
    const gateway = await fakeGateway({ ...bySeed, slots: 2 });
    const { usage } = await gateway.complete({ ...body, logprobs: 1, echo: true });
    const { prefills } = gateway.workers;
    expect(prefills.length).toBeGreaterThan(5);
    expect(usage!.prompt_tokens).toBe(prefills[0]!.tokenIds!.length);
    expect(usage!.prompt_tokens_details.cached_tokens).toBe(2); // of the first round
    expect((await metrics.promptTokens.get()).values[0]?.value).toBe(before + usage!.prompt_tokens);
    expect(prefills.filter(({ promptLogprobs }) => promptLogprobs! >= 0)).toHaveLength(1);
  });

  test('a tenant is not charged for cached tokens of a prompt, nor for output that nobody makes', async () => {
    const givenBack = vi.spyOn(FairQueue.prototype, 'giveBack');
    onTestFinished(() => givenBack.mockRestore());
    const total = () => {
      const sum = givenBack.mock.calls.reduce((tokens, [, cost]) => tokens + cost, 0);
      givenBack.mockClear();
      return sum;
    };
    const cached = 2;
    for (const slots of [16, 2]) {
      const gateway = await fakeGateway({ ...bySeed, slots });
      await gateway.complete({ ...body, n: 6, best_of: 6 });
      await gateway.workers.idle();
      expect(total()).toBe(cached); // all output was made
    }
    const held = await fakeGateway({ ...bySeed, slots: 16, holdAt: 'in decode' }, { requestTimeoutMs: 300 });
    expect(await held.complete({ ...body, n: 6 })).toMatchObject({ error: { code: 'deadline_exceeded' } });
    await held.workers.idle();
    expect(total()).toBe(cached + 6 * 11); // of 12 tokens each the first was made
  });

  test('no worker ever has more sequences than its slots and half as many that wait', async () => {
    let most = 0;
    const running = new Set<number>();
    const gateway = await fakeGateway({
      ...bySeed,
      slots: 4,
      trouble: ({ stage, call, position }: Trouble) => {
        if (stage === 'before joined') running.add(call);
        if (stage === 'in decode' && position === 11) running.delete(call);
        most = Math.max(most, running.size);
        return undefined;
      },
    });
    await gateway.complete({ ...body, n: 64, best_of: 64 });
    expect(most).toBe(6);
    expect(gateway.workers.decodes).toHaveLength(64);
  });

  test('all choices of a prompt get workers before those of the next prompt of the request', async () => {
    const gateway = await fakeGateway({ ...bySeed, slots: 2 });
    await gateway.complete({ ...body, prompt: ['first', 'second one'], n: 6 });
    const lengths = gateway.workers.prefills.map(({ tokenIds }) => tokenIds!.length);
    expect(lengths).toEqual(lengths.toSorted((a, b) => a - b));
  });

  test('a client that hangs up while choices wait frees everything', async () => {
    const gateway = await fakeGateway({ ...bySeed, slots: 2, holdAt: 'in decode' }, { requestTimeoutMs: 300 });
    expect(await gateway.complete({ ...body, n: 16 })).toMatchObject({ error: { code: 'deadline_exceeded' } });
    await gateway.workers.idle();
    expect((await metrics.waiting.get()).values[0]?.value).toBe(0);
  });

  test('choices that a full worker refuses come back, which is not a replay', async () => {
    const before = (await metrics.sequencesRequeued.get()).values[0]?.value ?? 0;
    const whole = await (await fakeGateway({ ...bySeed, slots: 16 })).complete(body);
    let refused = 0;
    const trouble = ({ stage }: Trouble): undefined => {
      if (!['before joined', 'before accepted'].includes(stage) || ++refused % 3 !== 0 || refused > 20) return;
      throw new ServingError('saturated', 'full');
    };
    const gateway = await fakeGateway({ ...bySeed, slots: 8, trouble }, { maxReplays: 0 });
    const answer = await gateway.complete(body);
    expect([answer.choices, answer.usage!.prompt_tokens]).toEqual([whole.choices, whole.usage!.prompt_tokens]);
    expect(gateway.lines).toContainEqual(expect.objectContaining({ message: 'completion', replays: 0 }));
    expect((await metrics.sequencesRequeued.get()).values[0]?.value).toBeGreaterThan(before);
  });
});

describe('two tenants', () => {
  /** The tenant's name is its key. */
  const keys = { ...NO_KEYS, identify: (tenant = '') => ({ ...NO_KEYS.identify(tenant), tenant }) };

  /** Decoders that go on one token at a time, all together, when the test says so. */
  function inStep() {
    const waiting: (() => void)[] = [];
    let steps = 0;
    return {
      turn: () => new Promise<void>((resolve) => waiting.push(resolve)),
      step: () => {
        steps++;
        for (const go of waiting.splice(0)) go();
      },
      get steps() {
        return steps;
      },
    };
  }

  test('a short request is served within a bounded number of steps beside 64 long choices, which come out exact', async () => {
    const body = { prompt: 'x', n: 64, seed: 3, max_tokens: 40, ignore_eos: true, return_token_ids: true };
    const whole = await (await fakeGateway({ ...bySeed, slots: 64 })).complete(body);
    const preempted = (await metrics.preemptions.get()).values[0]?.value ?? 0;
    const clock = inStep();
    const gateway = await fakeGateway({ ...bySeed, slots: 4 }, { keys, preemptAfterMs: 0, requestTimeoutMs: 50_000 });
    const { client } = gateway.workers.decode;
    const { decode } = client;
    client.decode = async function* (request, signal, deadline) {
      for await (const event of decode(request, signal, deadline)) {
        if (event.step) await clock.turn();
        signal.throwIfAborted();
        yield event;
      }
    };
    const ask = async (tenant: string, payload: object): Promise<Answer> => {
      const headers = { authorization: `Bearer ${tenant}` };
      return (await gateway.app.inject({ method: 'POST', url: '/v1/completions', headers, payload })).json();
    };
    /** Lets the decoders go on until it is so. */
    const stepUntil = async (isSo: () => boolean) => {
      while (!isSo()) {
        clock.step();
        await nextTurn();
        await nextTurn();
      }
    };
    const stepUntilAnswered = async (answered: Promise<Answer>) => {
      let over = false;
      const end = () => {
        over = true;
      };
      answered.then(end, end);
      await stepUntil(() => over);
      return answered;
    };
    const long = ask('many', body);
    await stepUntil(() => gateway.workers.decodes.length > 5);
    for (let i = 0; i < 3; i++) {
      const before = clock.steps;
      const short = await stepUntilAnswered(ask('few', { prompt: 'y', max_tokens: 8, ignore_eos: true }));
      expect(short.choices[0]!.finish_reason).toBe('length');
      expect(clock.steps - before).toBeLessThan(40); // less than one of the long choices takes
    }
    const answer = await stepUntilAnswered(long);
    expect(answer.choices).toEqual(whole.choices);
    expect(answer.usage!.completion_tokens).toBe(64 * 40);
    expect((await metrics.preemptions.get()).values[0]?.value).toBeGreaterThan(preempted);
    expect(gateway.lines).toContainEqual(expect.objectContaining({ tenant: 'many', replays: 0 }));
    await gateway.workers.idle();
  });

  test('a choice makes way at once though no worker has accepted its prompt yet', async () => {
    const wanted = { prompt: 'x = ', n: 6, seed: 5, max_tokens: 12, return_token_ids: true };
    const whole = await (await fakeGateway({ ...bySeed, slots: 16 })).complete(wanted);
    const preempted = (await metrics.preemptions.get()).values[0]?.value ?? 0;
    const gateway = await fakeGateway({ ...bySeed, slots: 4 }, { keys, preemptAfterMs: 0 });
    const { client } = gateway.workers.prefill;
    const { prefill } = client;
    const [called, accepts] = [new Deferred<void>(), new Deferred<void>()];
    let calls = 0;
    client.prefill = async function* (request, signal, deadline) {
      called.resolve();
      if (calls++ === 0) await accepts.promise;
      yield* prefill(request, signal, deadline);
    };
    const ask = async (tenant: string, payload: object): Promise<Answer> => {
      const headers = { authorization: `Bearer ${tenant}` };
      return (await gateway.app.inject({ method: 'POST', url: '/v1/completions', headers, payload })).json();
    };
    const many = ask('many', wanted);
    await called.promise;
    const few = await ask('few', { prompt: 'y', max_tokens: 8, ignore_eos: true });
    expect(few.choices[0]!.finish_reason).toBe('length');
    expect((await metrics.preemptions.get()).values[0]?.value).toBe(preempted + 3); // two waited for a slot
    accepts.resolve();
    expect((await many).choices).toEqual(whole.choices);
    await gateway.workers.idle();
  });
});
