import { expect, test } from 'vitest';
import { GATEWAY_SETTINGS } from '../../../services/gateway/settings.ts';
import { loadConfig } from '../../../services/settings.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

const IDE = 'https://ide.example.com';

const preflight = (origin: string) => ({
  method: 'OPTIONS' as const,
  url: '/v1/completions',
  headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' },
});

test('without origins a gateway says nothing to browsers of other origins', async () => {
  const { app } = await fakeGateway({ token: spelling('ab') });
  const answer = await app.inject(preflight(IDE));
  expect([answer.statusCode, answer.headers['access-control-allow-origin']]).toEqual([405, undefined]);
});

test('a listed origin may ask, and read the headers that matter; another one may not', async () => {
  const { app } = await fakeGateway({ token: spelling('ab') }, { corsOrigins: [IDE, 'http://localhost:3000'] });
  const allowed = await app.inject(preflight(IDE));
  expect(allowed.statusCode).toBe(204);
  expect(allowed.headers).toMatchObject({
    'access-control-allow-origin': IDE,
    'access-control-allow-headers': 'authorization',
    'access-control-max-age': '600',
  });
  const payload = { prompt: 'x', max_tokens: 1 };
  const answer = await app.inject({ method: 'POST', url: '/v1/completions', headers: { origin: IDE }, payload });
  expect(answer.headers['access-control-allow-origin']).toBe(IDE);
  const readable = answer.headers['access-control-expose-headers'];
  for (const header of ['rag', 'suffix', 'ignored', 'limit']) expect(readable).toContain(`x-llavacode-${header}`);
  for (const origin of ['https://evil.example', `${IDE}.evil.example`, 'null']) {
    expect((await app.inject(preflight(origin))).headers['access-control-allow-origin']).toBeUndefined();
  }
});

test('a stream has the headers of CORS too', async () => {
  const { app } = await fakeGateway({ token: spelling('ab') }, { corsOrigins: [IDE] });
  const payload = { prompt: 'x', max_tokens: 1, stream: true };
  const answer = await app.inject({ method: 'POST', url: '/v1/completions', headers: { origin: IDE }, payload });
  expect(answer.headers['access-control-allow-origin']).toBe(IDE);
});

test('with CORS an unknown path is still not found, and a wrong method still refused', async () => {
  const { app } = await fakeGateway({ token: spelling('ab') }, { corsOrigins: [IDE] });
  expect((await app.inject('/nothing')).statusCode).toBe(404);
  expect((await app.inject({ method: 'DELETE', url: '/nothing' })).statusCode).toBe(404);
  expect((await app.inject({ method: 'DELETE', url: '/v1/completions' })).statusCode).toBe(405);
});

test.each(['*', 'ide.example.com', `${IDE}/`, `${IDE},*`])('--cors-origins %s is refused', (corsOrigins) => {
  const needed = { model: 'm', prefillWorkers: 'a:1', decodeWorkers: 'a:2' };
  expect(() => loadConfig(GATEWAY_SETTINGS, { ...needed, corsOrigins }, {})).toThrow(/cors-origins.*must be origins/);
});
