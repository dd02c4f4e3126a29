/** A worker is lost, and the client does not notice. */
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { type FakeGateway, fakeGateway, spelling } from '../../support/fake-gateway.ts';
import type { Trouble } from '../../support/fake-workers.ts';

const TEXT = 'return self.items[index] + other.items[index]';
const token = spelling(TEXT);
const lost = () => new ServingError('worker_lost', 'connection dropped');
/** Enough workers to lose some. */
const more = { morePrefill: ['p2', 'p3', 'p4'], moreDecode: ['d2', 'd3', 'd4'], maxReplays: 3 };

/** Throws once, at the first call that meets the condition. */
function once(when: (at: Trouble) => boolean, error: () => unknown = lost) {
  let happened = false;
  return (at: Trouble): undefined => {
    if (happened || !when(at)) return undefined;
    happened = true;
    throw error();
  };
}

/** The sum of a stream, as a client has it at the end. */
async function streamed(gateway: FakeGateway, body: object) {
  const events = await gateway.stream({ prompt: 'x', stream_options: { include_usage: true }, ...body });
  const failure = events.find(({ error }) => error);
  if (failure) throw new ServingError(failure.error!.code as 'internal', failure.error!.message);
  const choices = events.flatMap((event) => event.choices);
  return {
    text: choices.map(({ text }) => text).join(''),
    ids: choices.flatMap(({ token_ids }) => token_ids ?? []),
    finish: choices.map(({ finish_reason }) => finish_reason).filter(Boolean),
    usage: events.at(-1)!.usage!,
  };
}

const count = async (metric: { get(): Promise<{ values: { value: number; labels: object }[] }> }, reason: string) =>
  (await metric.get()).values.find(({ labels }) => 'reason' in labels && labels.reason === reason)?.value ?? 0;

describe('one stream, no token lost or doubled', () => {
  const body = { max_tokens: 64, return_token_ids: true };
  const places: [string, (at: Trouble) => boolean][] = [
    ['prefill before it has a slot', ({ stage }) => stage === 'before accepted'],
    ['prefill while it computes', ({ stage }) => stage === 'before first'],
    ['decode before it has the KV', ({ stage }) => stage === 'before joined'],
    ['decode before its first token', ({ stage, position }) => stage === 'in decode' && position === 1],
    ['decode in the middle', ({ stage, position }) => stage === 'in decode' && position === 5],
    ['decode before the last token', ({ stage, position }) => stage === 'in decode' && token(position + 1, 0, 0) === 0],
  ];

  test.each(places)('no token is lost or doubled when %s is lost', async (_, when) => {
    const whole = await streamed(await fakeGateway({ token }), body);
    const gateway = await fakeGateway({ token, trouble: once(when) }, more);
    expect(await streamed(gateway, body)).toEqual(whole);
    expect(whole.text).toBe(TEXT);
    await gateway.workers.idle();
  });

  test('answers with several choices, logprobs and echo are the same, whenever a worker is lost', async () => {
    const asked = { ...body, prompt: 'x = ', n: 3, seed: 5, logprobs: 1, echo: true };
    const bySeed = (position: number, _: number, seed: number) => 70 + ((position * 7 + seed) % 20);
    const { choices, usage } = await (await fakeGateway({ token: bySeed })).complete({ ...asked, max_tokens: 20 });
    for (let call = 0; call < 3; call++) {
      for (const position of [1, 2, 10, 19]) {
        const trouble = once((at) => at.stage === 'in decode' && at.call === call && at.position === position);
        const gateway = await fakeGateway({ token: bySeed, trouble }, more);
        const answer = await gateway.complete({ ...asked, max_tokens: 20 });
        expect(answer.choices, `call ${call}, position ${position}`).toEqual(choices);
        expect(answer.usage).toEqual(usage);
        await gateway.workers.idle();
      }
    }
  });

  test('a stream goes on when worker after worker is lost', async () => {
    const trouble = ({ stage, call, position }: Trouble) => {
      if (stage === 'in decode' && call < 3 && position === 3 * (call + 1)) throw lost();
      return undefined;
    };
    const gateway = await fakeGateway({ token, trouble }, more);
    const { text, usage } = await streamed(gateway, body);
    expect(text).toBe(TEXT);
    expect(gateway.workers.prefills.map(({ choices }) => choices![0]!.priorOutputIds!.length)).toEqual([0, 3, 6, 9]);
    expect(usage.prompt_tokens).toBe(gateway.workers.prefills[0]!.tokenIds!.length);
    expect(gateway.lines).toContainEqual(expect.objectContaining({ message: 'completion', replays: 3 }));
  });

  test('max_tokens and min_tokens count on after a loss, and a stop string may span it', async () => {
    const trouble = once(({ stage, position }) => stage === 'in decode' && position === 6);
    const gateway = await fakeGateway({ token, trouble }, more);
    expect(await streamed(gateway, { max_tokens: 10, min_tokens: 8 })).toMatchObject({
      finish: ['length'],
      usage: { completion_tokens: 10 },
    });
    expect(gateway.workers.decodes.map(({ maxTokens }) => maxTokens)).toEqual([10, 4]);
    expect(gateway.workers.decodes[1]!.sampling!.minTokens).toBe(8);
    const asked = { max_tokens: 64, stop: '[index] + o' };
    for (let position = 1; position < 12; position++) {
      const struck = once((at) => at.stage === 'in decode' && at.position === position);
      const other = await fakeGateway({ token, trouble: struck }, more);
      expect(await streamed(other, asked)).toMatchObject({ text: 'return self.items', finish: ['stop'] });
    }
  });

  test('when only the last token is missing prefill draws it', async () => {
    const trouble = once(({ stage, position }) => stage === 'in decode' && position === 3);
    const gateway = await fakeGateway({ token, trouble }, more);
    const whole = await (await fakeGateway({ token })).complete({ prompt: 'x', max_tokens: 4 });
    expect((await gateway.complete({ prompt: 'x', max_tokens: 4 })).choices).toEqual(whole.choices);
    expect(gateway.workers.prefills[1]).toMatchObject({ readers: 0 });
    expect(gateway.workers.decodes).toHaveLength(1);
  });
});

describe('a worker', () => {
  test('a worker that sends no more tokens counts as lost', async () => {
    let hung = false;
    const trouble = ({ stage, position }: Trouble) => {
      if (hung || stage !== 'in decode' || position !== 4) return undefined;
      hung = true;
      return 'hang' as const;
    };
    const before = await count(metrics.replays, 'worker_stalled');
    const gateway = await fakeGateway({ token, trouble }, { ...more, stallTimeoutMs: 20 });
    expect((await streamed(gateway, { max_tokens: 64 })).text).toBe(TEXT);
    expect(await count(metrics.replays, 'worker_stalled')).toBe(before + 1);
    await gateway.workers.idle();
  });

  describe('that computed a prompt and is lost before its KV was taken', () => {
    /** The first decoder never gets a byte and hears nothing. */
    const waiting = (more: (at: Trouble) => void = () => {}) => {
      let first = true;
      return (at: Trouble) => {
        more(at);
        if (at.stage !== 'before joined' || !first) return undefined;
        first = false;
        return 'hang' as const;
      };
    };

    test('a prefill worker lost before its KV was taken is noticed by its silence', async () => {
      const gateway = await fakeGateway({ token, trouble: waiting() }, { ...more, stallTimeoutMs: 50 });
      const { client } = gateway.workers.prefill;
      client.describe = (signal) =>
        new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true }));
      const answer = streamed(gateway, { max_tokens: 64 });
      await gateway.workers.held();
      await gateway.pool.refresh();
      expect((await answer).text).toBe(TEXT);
      expect(gateway.workers.prefills).toHaveLength(2);
      await gateway.workers.idle();
    });

    test('a prefill worker lost before its KV was taken is noticed by its broken connection', async () => {
      const trouble = waiting(once(({ stage }) => stage === 'before released'));
      const gateway = await fakeGateway({ token, trouble }, more);
      expect((await streamed(gateway, { max_tokens: 64 })).text).toBe(TEXT);
      await gateway.workers.idle();
      // The decoder is not to blame.
      expect(
        gateway.lines.filter(({ message, role }) => message === 'worker is not usable' && role === 'decode'),
      ).toEqual([]);
    });
  });

  test('the new work of a worker that drains goes to others', async () => {
    const draining = new ServingError('draining', 'shutting down');
    for (const stage of ['before accepted', 'before joined'] as const) {
      const gateway = await fakeGateway(
        {
          token,
          trouble: once(
            (at) => at.stage === stage,
            () => draining,
          ),
        },
        more,
      );
      expect((await streamed(gateway, { max_tokens: 64 })).text).toBe(TEXT);
    }
  });

  test('a worker whose copy of the KV is damaged gets another one, and is not left alone for it', async () => {
    const damaged = () => new ServingError('kv_digest_mismatch', 'a bit flipped');
    const trouble = once(({ stage }) => stage === 'before joined', damaged);
    const gateway = await fakeGateway({ token, trouble }, { maxReplays: 1 });
    expect((await streamed(gateway, { max_tokens: 64 })).text).toBe(TEXT);
  });

  test('a worker whose KV did not arrive is not asked again, though it has the whole prompt cached', async () => {
    const trouble = ({ stage, worker }: Trouble): undefined => {
      asked.push(`${stage} ${worker}`);
      // The first prefill worker is out of the decoders' reach.
      if (
        stage !== 'before joined' ||
        asked
          .filter((each) => each.startsWith('before acc'))
          .at(-1)
          ?.endsWith('p2')
      )
        return;
      throw new ServingError('kv_truncated', 'no connection');
    };
    const asked: string[] = [];
    const gateway = await fakeGateway({ token, trouble }, { morePrefill: ['p2'], moreDecode: ['d2'], maxReplays: 1 });
    const body = { max_tokens: 64, session: 'typing' };
    expect((await streamed(gateway, body)).text).toBe(TEXT);
    expect(asked.filter((each) => each.startsWith('before acc')).at(-1)).toBe('before accepted p2');
  });

  test('a worker that failed some requests and then serves is used again', async () => {
    vi.useFakeTimers({ toFake: ['performance'] });
    onTestFinished(() => void vi.useRealTimers());
    let failing = true;
    const trouble = ({ stage }: Trouble): undefined => {
      if (failing && stage === 'in decode') throw new ServingError('runtime_failed', 'NaN');
    };
    const gateway = await fakeGateway({ token, trouble });
    for (let i = 0; i < 3; i++) {
      expect(gateway.pool.usable).toBe(true);
      vi.advanceTimersByTime(1000);
      expect(await gateway.complete({ prompt: 'x' })).toMatchObject({ error: { code: 'runtime_failed' } });
    }
    expect(gateway.pool.usable).toBe(false);
    failing = false;
    vi.advanceTimersByTime(60_000);
    for (let i = 0; i < 3; i++) {
      expect((await streamed(gateway, { max_tokens: 64 })).text).toBe(TEXT);
      expect(gateway.pool.usable).toBe(true);
    }
  });

  test('when the only worker is lost the stream waits for the next one', async () => {
    const trouble = once(({ stage, position }) => stage === 'in decode' && position === 4);
    const gateway = await fakeGateway({ token, trouble }, { maxReplays: 1, connectTimeoutMs: 60_000 });
    const answer = streamed(gateway, { max_tokens: 64 });
    await expect.poll(() => gateway.pool.usable).toBe(false);
    await gateway.pool.refresh();
    expect((await answer).text).toBe(TEXT);
  });
});

describe('an end that is told', () => {
  const always = ({ stage, position }: Trouble): undefined => {
    if (stage === 'in decode' && position >= 3) throw lost();
    return undefined;
  };

  test('a stream ends with the error’s code after the allowed number of replays', async () => {
    const before = await count(metrics.replaysExhausted, 'worker_lost');
    const gateway = await fakeGateway({ token, trouble: always }, { ...more, maxReplays: 2 });
    const events = await gateway.stream({ prompt: 'x', max_tokens: 64 });
    expect(events.at(-1)).toMatchObject({ error: { code: 'worker_lost' } });
    const reasons = events.slice(0, -1).flatMap(({ choices }) => choices.map((each) => each.finish_reason));
    expect(reasons).toEqual([null, null, null, null, null]); // three tokens, and one more by each replay's prefill
    expect(gateway.workers.prefills).toHaveLength(3);
    expect(await count(metrics.replaysExhausted, 'worker_lost')).toBe(before + 1);
    await gateway.workers.idle();
  });

  test('an error that ends several choices counts once in the metric', async () => {
    const before = await count(metrics.replaysExhausted, 'runtime_failed');
    const failed = () => new ServingError('runtime_failed', 'NaN');
    const trouble = ({ stage }: Trouble): undefined => {
      if (stage === 'before accepted') throw failed();
    };
    const gateway = await fakeGateway({ token, trouble }, { maxReplays: 0 });
    const answer = await gateway.complete({ prompt: 'x', max_tokens: 64, n: 3 });
    expect(answer).toMatchObject({ status: 500, error: { code: 'runtime_failed' } });
    expect(await count(metrics.replaysExhausted, 'runtime_failed')).toBe(before + 1);
  });

  test('a request ends with 503 when no worker comes up', async () => {
    const gateway = await fakeGateway({ token, trouble: always }, { maxReplays: 3 });
    const answer = await gateway.complete({ prompt: 'x', max_tokens: 64 });
    expect(answer).toMatchObject({ status: 503, error: { code: 'no_worker' } });
    await gateway.workers.idle();
  });

  test('a failure that no other worker can mend is not replayed', async () => {
    const trouble = once(
      ({ stage }) => stage === 'in decode',
      () => new ServingError('out_of_memory', 'too many slots'),
    );
    const gateway = await fakeGateway({ token, trouble }, more);
    expect(await gateway.complete({ prompt: 'x' })).toMatchObject({ status: 500, error: { code: 'out_of_memory' } });
    expect(gateway.workers.prefills).toHaveLength(1);
  });
});
