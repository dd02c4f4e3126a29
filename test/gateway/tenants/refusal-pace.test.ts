import fc from 'fast-check';
import { afterEach, expect, test, vi } from 'vitest';
import { RefusalPace } from '../../../services/gateway/tenants/refusal-pace.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

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
        const holdMs = pace.refused('busy');
        expect(holdMs).toBeLessThanOrEqual(1_000);
        heardAtMs[next] = nowMs + holdMs;
        refusals++;
      }
      expect(refusals).toBeLessThanOrEqual(100 + 50 * seconds + clients + 1);
      expect(pace.refused('calm')).toBe(0);
    }),
  );
});

test('a flood from more clients than the pace has room for is held for a second each, and not after it has ended', () => {
  let nowMs = 0;
  const pace = new RefusalPace(50, () => nowMs);
  for (let i = 0; i < 10_000; i++) pace.refused('busy');
  expect(pace.refused('busy')).toBe(1_000);
  nowMs = 1_100;
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
