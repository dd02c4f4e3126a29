import fc from 'fast-check';
import { afterEach, expect, test, vi } from 'vitest';
import { RefusalPace } from '../../../services/gateway/tenants/refusal-pace.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

const KEYS = {
  tenants: ['a'],
  identify: (key: string | undefined) => {
    if (key !== 'secret') throw new ServingError('invalid_api_key', 'unknown key');
    return { tenant: 'a', limits: {}, access: 'admin' as const, mayUse: () => true };
  },
};

afterEach(() => void vi.useRealTimers());

test('clients that send the next request as soon as they are refused get a burst and 50 refusals a second', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 50 }), fc.integer({ min: 2, max: 20 }), (clients, seconds) => {
      let nowMs = 0;
      const pace = new RefusalPace(50, () => nowMs);
      const heardAtMs = Array.from({ length: clients }, () => 0);
      let refusals = 0;
      for (;;) {
        const next = heardAtMs.indexOf(Math.min(...heardAtMs));
        nowMs = heardAtMs[next]!;
        if (nowMs > seconds * 1_000) break;
        heardAtMs[next] = nowMs + pace.refused('busy')!;
        expect(heardAtMs[next]).toBeLessThanOrEqual(nowMs + 1_000);
        refusals++;
      }
      expect(refusals).toBeLessThanOrEqual(100 + 50 * seconds + clients + 1);
      expect(pace.refused('calm')).toBe(0);
    }),
  );
});

test('of a flood from more clients than the pace has room for no more than 50 are held at once, and none after it', () => {
  let nowMs = 0;
  const pace = new RefusalPace(50, () => nowMs);
  const answers = Array.from({ length: 10_000 }, () => pace.refused('busy'));
  expect(answers.filter((holdMs) => holdMs === 0)).toHaveLength(100);
  expect(answers.filter((holdMs) => holdMs !== undefined && holdMs > 0)).toHaveLength(50);
  expect(pace.refused('busy')).toBeUndefined();
  nowMs = 1_020;
  expect(pace.refused('busy')).toBe(0);
});

test('the gateway holds back refusals beyond the pace, and serves good requests of the same client at once', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
  const { app } = await fakeGateway({ token: spelling('ab') }, { refusalsPerSecond: 50 });
  const ask = (payload: object) => app.inject({ method: 'POST', url: '/v1/completions', payload });
  for (let i = 0; i < 100; i++) expect((await ask({ prompt: 'x', max_tokens: -1 })).statusCode).toBe(400);
  let heard = false;
  const held = ask({ prompt: 'x', max_tokens: -1 }).then((answer) => {
    heard = true;
    return answer.statusCode;
  });
  expect((await app.inject({ url: '/v1/models' })).statusCode).toBe(200);
  expect(heard).toBe(false);
  vi.advanceTimersByTime(20);
  expect(await held).toBe(400);
});

test('a client beyond those that are held must connect again, and one without a key is refused at once', async () => {
  const { app } = await fakeGateway({ token: spelling('ab') }, { refusalsPerSecond: 1, keys: KEYS });
  const bad = { method: 'POST', url: '/v1/completions', payload: { prompt: 'x', max_tokens: -1 } } as const;
  const known = { ...bad, headers: { authorization: 'Bearer secret' } };
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
  for (let i = 0; i < 2; i++) expect((await app.inject(known)).headers['connection']).not.toBe('close');
  const held = app.inject(known);
  await vi.waitUntil(() => vi.getTimerCount() > 0);
  const beyond = await app.inject(known);
  expect([beyond.statusCode, beyond.headers['connection']]).toEqual([400, 'close']);
  for (let i = 0; i < 5; i++) expect((await app.inject(bad)).statusCode).toBe(401);
  vi.advanceTimersByTime(1_000);
  expect((await held).statusCode).toBe(400);
});
