/**
 * Limits on requests in flight, their budgets and sessions, as a client sees them; and the work that a drain awaits.
 */
import { once } from 'node:events';
import fc from 'fast-check';
import { describe, expect, test, vi } from 'vitest';
import { InflightRequests } from '../../../services/gateway/admission/inflight.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { type FakeGatewayOptions, fakeGateway, spelling } from '../../support/fake-gateway.ts';
import type { FakeModel, Stage } from '../../support/fake-workers.ts';

const token = spelling('return self.items');
const NEVER = new AbortController().signal;
const hold = (stage: Stage = 'in decode', options?: FakeGatewayOptions, model?: Partial<FakeModel>) =>
  fakeGateway({ token, holdAt: stage, ...model }, options);

describe('a session', () => {
  test.each(['before accepted', 'before first', 'before joined', 'in decode'] as const)(
    'the request of a session ends at the session’s next one, %s, with every call',
    async (stage) => {
      const gateway = await hold(stage, { maxInflight: 1 });
      const older = gateway.complete({ prompt: 'x', session: 's' });
      await gateway.workers.held();
      delete gateway.workers.model.holdAt;
      // Only one request may be in flight, but the older one is about to end.
      expect(await gateway.complete({ prompt: 'y', session: 's' })).toMatchObject({ status: 200 });
      expect(await older).toMatchObject({ status: 409, error: { code: 'superseded' } });
      await gateway.workers.idle();
    },
  );

  test('a superseded stream ends with an event', async () => {
    const gateway = await hold();
    const older = gateway.stream({ prompt: 'x', session: 's' });
    await gateway.workers.held();
    delete gateway.workers.model.holdAt;
    await gateway.complete({ prompt: 'y', session: 's' });
    expect((await older).at(-1)).toMatchObject({ error: { code: 'superseded' } });
  });

  test('the older request of a session goes on until nothing can refuse the newer one any more', () => {
    const inflight = new InflightRequests({ maxInflight: 8, requestTimeoutMs: 60_000, draining: NEVER });
    const older = inflight.enter({ session: 's' });
    older.supersede();
    const refused = inflight.enter({ session: 's' });
    refused.release();
    const newer = inflight.enter({ session: 's' });
    expect(older.signal.aborted).toBe(false);
    newer.supersede();
    expect(older.signal.reason).toMatchObject({ code: 'superseded' });
    for (const admitted of [older, newer]) admitted.release();
  });

  test('of two requests of a session the one that came first is superseded, even if it is let in last', () => {
    const inflight = new InflightRequests({ maxInflight: 8, requestTimeoutMs: 60_000, draining: NEVER });
    const [older, newer] = [inflight.enter({ session: 's' }), inflight.enter({ session: 's' })];
    newer.supersede();
    older.supersede();
    expect(older.signal.reason).toMatchObject({ code: 'superseded' });
    expect(newer.signal.aborted).toBe(false);
    for (const admitted of [older, newer]) admitted.release();
  });

  test('of several requests at several gateways only the last one goes on, in whatever order news travel', () => {
    const order = fc.array(fc.record({ at: fc.nat(2), hears: fc.array(fc.nat(2), { maxLength: 6 }) }), {
      minLength: 1,
      maxLength: 12,
    });
    fc.assert(
      fc.property(order, (requests) => {
        const said: unknown[] = []; // in the order of the channel
        const gateways = [0, 1, 2].map(() => ({
          heard: 0,
          inflight: new InflightRequests({
            maxInflight: 100,
            requestTimeoutMs: 60_000,
            draining: NEVER,
            announce: async (started) => said.push(started) > 0,
          }),
        }));
        const hear = (gateway: (typeof gateways)[number]) => {
          if (gateway.heard < said.length) gateway.inflight.superseded(said[gateway.heard++]);
        };
        const places = requests.map(({ at, hears }) => {
          const place = gateways[at]!.inflight.enter({ session: 's' });
          place.supersede();
          for (const which of hears) hear(gateways[which]!);
          return place;
        });
        for (const gateway of gateways) for (const _ of said) hear(gateway);
        const goesOn = places.map(({ signal }) => !signal.aborted);
        for (const place of places) place.release();
        expect(goesOn).toEqual(places.map((_, i) => i === places.length - 1));
      }),
    );
  });

  test('a request whose announcement was lost is superseded by the next one of another gateway', async () => {
    const options = { maxInflight: 8, requestTimeoutMs: 60_000, draining: NEVER };
    const inflight = new InflightRequests({ ...options, announce: async () => false });
    const place = inflight.enter({ session: 's' });
    place.supersede();
    await vi.waitUntil(() => {
      inflight.superseded({ session: 's', request: 'other' });
      return place.signal.aborted;
    });
    for (const news of [null, 'x', { session: 1 }, {}]) inflight.superseded(news);
    place.release();
  });

  test('requests of other sessions, and those that have ended, are not superseded', async () => {
    const gateway = await fakeGateway({ token });
    for (const session of ['a', 'b', 'a', undefined]) {
      expect(await gateway.complete({ prompt: 'x', ...(session && { session }) })).toMatchObject({ status: 200 });
    }
  });
});

describe('sequences in flight', () => {
  const inflightOf = (maxInflight: number) =>
    new InflightRequests({ maxInflight, requestTimeoutMs: 60_000, draining: NEVER });

  test('sequences count against the limit, and the refusal names all numbers', () => {
    const inflight = inflightOf(8);
    const held = [inflight.enter({ sequences: 6, tenant: 'a' }), inflight.enter({ sequences: 2, tenant: 'a' })];
    expect(() => inflight.enter({ tenant: 'a' })).toThrowError(
      expect.objectContaining({
        code: 'saturated',
        limit: 'max-inflight',
        message: '8 sequences are in flight, and the request asks for 1: --max-inflight is 8',
      }),
    );
    for (const place of held) place.release();
  });

  test('a request of more sequences than the limit is let in alone, and keeps no other tenant out', () => {
    const inflight = inflightOf(8);
    const alone = inflight.enter({ sequences: 128, tenant: 'a' });
    expect(() => inflight.enter({ tenant: 'a' })).toThrowError(expect.objectContaining({ code: 'saturated' }));
    const other = inflight.enter({ sequences: 4, tenant: 'b' });
    expect(() => inflight.enter({ tenant: 'b' })).toThrowError(expect.objectContaining({ code: 'saturated' }));
    alone.release();
    const again = inflight.enter({ sequences: 12, tenant: 'a' }); // it has nothing, and there are twice as many at most
    for (const place of [other, again]) place.release();
  });

  test('a completion counts with its prompts times its choices', async () => {
    const gateway = await hold('in decode', { maxInflight: 8 });
    const running = gateway.complete({ prompt: ['x', 'y'], n: 3, session: 's' });
    await gateway.workers.held();
    const refused = await gateway.complete({ prompt: 'x', n: 3 });
    expect(refused).toMatchObject({ status: 429, error: { code: 'saturated' } });
    expect((await metrics.sequencesInflight.get()).values[0]?.value).toBe(6);
    delete gateway.workers.model.holdAt;
    expect(await gateway.complete({ prompt: ['x', 'y'], n: 3, session: 's' })).toMatchObject({ status: 200 });
    expect(await running).toMatchObject({ status: 409 });
  });
});

test('a tenant that floods does not keep others from their shares', () => {
  const weightOf = (tenant: string) => (tenant === 'b' ? 3 : 1);
  const draining = new AbortController().signal;
  const inflight = new InflightRequests({ maxInflight: 8, weightOf, requestTimeoutMs: 60_000, draining });
  const held: { release(): void }[] = [];
  const admitted = (tenant: string) => {
    for (let count = 0; ; count++) {
      try {
        held.push(inflight.enter({ tenant }));
      } catch (error) {
        expect(error).toMatchObject({ code: 'saturated', limit: 'max-inflight' });
        return count;
      }
    }
  };
  expect([admitted('a'), admitted('b'), admitted('a')]).toEqual([8, 6, 0]); // b: 3 of 4 parts
  for (const { release } of held) release();
});

test('there are never more than twice as many requests, however many tenants come for their share', () => {
  const draining = new AbortController().signal;
  const inflight = new InflightRequests({ maxInflight: 12, requestTimeoutMs: 60_000, draining });
  const held: { release(): void }[] = [];
  for (let tenant = 0; tenant < 12; tenant++) {
    try {
      for (;;) held.push(inflight.enter({ tenant: `t${tenant}` }));
    } catch (error) {
      expect(error).toMatchObject({ code: 'saturated', limit: 'max-inflight' });
    }
  }
  expect(held.length).toBe(24);
  for (const { release } of held) release();
});

describe('an upload', () => {
  test('an upload takes no place and has no budget; a drain waits for it, and then ends it', async () => {
    const draining = new AbortController();
    const inflight = new InflightRequests({ maxInflight: 1, requestTimeoutMs: 1, draining: draining.signal });
    const [first, second] = [inflight.track(), inflight.track()];
    const completion = inflight.enter();
    await once(completion.signal, 'abort');
    completion.release();
    expect([first.signal.aborted, second.signal.aborted]).toEqual([false, false]);
    draining.abort(new ServingError('draining', 'shutting down'));
    expect(() => inflight.track()).toThrowError(expect.objectContaining({ code: 'draining' }));
    let over = false;
    const drained = inflight.drain(50).then(() => {
      over = true;
    });
    first.release();
    await once(second.signal, 'abort');
    expect([first.signal.aborted, second.signal.reason.code, over]).toEqual([false, 'draining', false]);
    second.release();
    await drained;
  });
});

describe('a budget', () => {
  test('a budget in the body ends the request, at any stage', async () => {
    for (const stage of ['before accepted', 'before first', 'before joined', 'in decode'] as const) {
      const gateway = await hold(stage);
      const answer = await gateway.complete({ prompt: 'x', timeout_ms: 10 });
      expect(answer).toMatchObject({ status: 504, error: { code: 'deadline_exceeded' } });
      expect(answer.error!.message).toContain('10 ms (its timeout_ms)');
      await gateway.workers.idle();
    }
  });
});

describe('a refusal', () => {
  test('a refusal names the limit that was reached, in a header and a counter', async () => {
    const shed = async (limit: string) =>
      (await metrics.shed.get()).values.find(({ labels }) => labels.limit === limit && labels.knob === limit)?.value ??
      0;
    const before = await shed('target-ttft-ms');
    const gateway = await hold('before first', { targetTtftMs: 100 }, { prefillTokensPerSecond: 10 });
    const running = gateway.complete({ prompt: 'a b c d e f g h', timeout_ms: 2_000 });
    await gateway.workers.held();
    const refused = await gateway.complete({ prompt: 'a b' });
    expect(refused).toMatchObject({ status: 429, error: { code: 'saturated', type: 'rate_limit_error' } });
    expect(refused.headers).toMatchObject({ 'x-llavacode-limit': 'target-ttft-ms', 'retry-after': '1' });
    await running;
    await expect.poll(() => shed('target-ttft-ms')).toBe(before + 1);
  });

  test('a refusal of too many requests at once names the limit, too', async () => {
    const gateway = await hold('in decode', { maxInflight: 1 });
    const running = gateway.complete({ prompt: 'x', timeout_ms: 2_000 });
    await gateway.workers.held();
    const { headers } = await gateway.complete({ prompt: 'y' });
    expect(headers['x-llavacode-limit']).toBe('max-inflight');
    await running;
  });
});
