/**
 * Limits on requests in flight, their budgets and sessions, as a client sees them; and the work that a drain awaits.
 */
import { once } from 'node:events';
import { describe, expect, test } from 'vitest';
import { InflightRequests } from '../../../services/gateway/admission/inflight.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { type FakeGatewayOptions, fakeGateway, spelling } from '../../support/fake-gateway.ts';
import type { FakeModel, Stage } from '../../support/fake-workers.ts';

const token = spelling('return self.items');
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

  test('the older request of a session goes on where the newer one is refused', () => {
    const draining = new AbortController();
    const inflight = new InflightRequests({ maxInflight: 8, requestTimeoutMs: 60_000, draining: draining.signal });
    const older = inflight.enter({ session: 's', tenant: 'a' });
    const other = inflight.enter({ tenant: 'a' });
    expect(() => inflight.enter({ session: 's', tenant: 'a', maxInflight: 1 })).toThrowError(
      expect.objectContaining({ code: 'quota_exceeded' }),
    );
    expect(older.signal.aborted).toBe(false);
    const newer = inflight.enter({ session: 's', tenant: 'a', maxInflight: 2 });
    expect(older.signal.reason).toMatchObject({ code: 'superseded' });
    for (const admitted of [older, other, newer]) admitted.release();
  });

  test('requests of other sessions, and those that have ended, are not superseded', async () => {
    const gateway = await fakeGateway({ token });
    for (const session of ['a', 'b', 'a', undefined]) {
      expect(await gateway.complete({ prompt: 'x', ...(session && { session }) })).toMatchObject({ status: 200 });
    }
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
      expect(answer.error!.message).toContain('10 ms');
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
    const running = gateway.complete({ prompt: 'a b c d e f g h', timeout_ms: 50 });
    await gateway.workers.held();
    const refused = await gateway.complete({ prompt: 'a b' });
    expect(refused).toMatchObject({ status: 429, error: { code: 'saturated', type: 'rate_limit_error' } });
    expect(refused.headers).toMatchObject({ 'x-llavacode-limit': 'target-ttft-ms', 'retry-after': '1' });
    await running;
    await expect.poll(() => shed('target-ttft-ms')).toBe(before + 1);
  });

  test('a refusal of too many requests at once names the limit, too', async () => {
    const gateway = await hold('in decode', { maxInflight: 1 });
    const running = gateway.complete({ prompt: 'x', timeout_ms: 50 });
    await gateway.workers.held();
    const { headers } = await gateway.complete({ prompt: 'y' });
    expect(headers['x-llavacode-limit']).toBe('max-inflight');
    await running;
  });
});
