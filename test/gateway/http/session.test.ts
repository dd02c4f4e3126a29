/** Sessions of requests whose body names none. */
import { expect, test } from 'vitest';
import { RecentPrompts } from '../../../services/gateway/context/recent-prompts.ts';
import { sessionOf } from '../../../services/gateway/context/sessions.ts';
import { withSession } from '../../../services/gateway/http/session.ts';
import { COMPLETION_DEFAULTS, type CompletionRequest } from '../../../services/gateway/request.ts';
import { bearer, keyEntry, keysOf } from '../../support/api-keys.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

const token = spelling('abcdefgh');
const CODE = Array.from({ length: 30 }, (_, i) => `value_${i} = compute(${i})\n`).join('');

const recent = new RecentPrompts();
/** The key of the series of prompts that a request belongs to. */
function seriesOf(
  request: Partial<CompletionRequest>,
  {
    tenant = 'a',
    keyId = 'k',
    ip = '10.0.0.1',
    headers = {},
  }: { tenant?: string; keyId?: string; ip?: string; headers?: object } = {},
) {
  const identity = { tenant, keyId, limits: {}, access: 'complete' as const, mayUse: () => true };
  const asked = withSession(
    { headers: { ...headers }, identity, ip },
    { ...COMPLETION_DEFAULTS, prompts: [CODE], ...request },
    recent,
  );
  return { session: asked.session, key: sessionOf(asked, tenant) };
}

test('the body names a session, else the header; the number of a slot is none', () => {
  const headers = { 'x-session-id': 'of-header' };
  expect(seriesOf({ session: 'of-body', slot: 0 }, { headers }).session).toBe('of-body');
  expect(seriesOf({ slot: 0 }, { headers }).session).toBe('of-header');
  expect(seriesOf({ slot: 0 }).session).toBeUndefined();
  expect(seriesOf({}, { headers: { 'x-session-id': '' } }).session).toBeUndefined();
});

test('without a session, requests of one client and one prompt are a series, those of other clients are not', () => {
  const { key } = seriesOf({});
  expect(key).toMatch(/^a:/);
  expect(seriesOf({ prompts: [`${CODE}x`] }).key).toBe(key);
  const others = [
    seriesOf({}, { ip: '10.0.0.2' }),
    seriesOf({}, { keyId: 'k2' }),
    seriesOf({}, { tenant: 'b' }),
    seriesOf({ cacheSalt: 's' }),
    seriesOf({ slot: 0 }),
    seriesOf({ slot: 1 }),
    seriesOf({ slot: 0 }, { ip: '10.0.0.2' }),
  ];
  expect(new Set([key, ...others.map((other) => other.key)]).size).toBe(others.length + 1);
  expect(seriesOf({ prompts: [CODE, CODE] }).key).toBeUndefined();
  expect(seriesOf({ prompts: [[1, 2, 3]] }).key).toBeUndefined();
  const ids = Array.from({ length: 200 }, (_, i) => 70_000 + i);
  expect(seriesOf({ prompts: [ids] }).key).toMatch(/^a:/);
  expect(seriesOf({ prompts: [[...ids, 1]] }).key).toBe(seriesOf({ prompts: [ids] }).key);
});

test.each([
  ['/v1/fim/completions', { prompt: 'x', max_tokens: 8 }],
  ['/infill', { input_prefix: 'x', n_predict: 8 }],
  ['/completion', { prompt: 'x', n_predict: 8 }],
  ['/api/generate', { model: 'tiny', prompt: 'x', stream: false, options: { num_predict: 8 } }],
])('the body of %s names a session', async (url, body) => {
  const gateway = await fakeGateway({ token, holdAt: 'in decode', capacity: 4096 });
  const payload = { ...body, session: 's' };
  const first = gateway.app.inject({ method: 'POST', url, payload });
  await gateway.workers.held();
  const newer = gateway.app.inject({ method: 'POST', url, payload, headers: { 'x-request-timeout-ms': '2000' } });
  const answer = await first;
  expect([answer.statusCode, answer.headers['x-llavacode-ignored']]).toEqual([409, undefined]);
  await newer;
  await gateway.workers.idle();
});

test('a request ends the one before of its session, and none of its series', async () => {
  const gateway = await fakeGateway({ token, holdAt: 'in decode', capacity: 4096 });
  const ask = (headers: Record<string, string>, prompt: string) =>
    gateway.app.inject({
      method: 'POST',
      url: '/v1/completions',
      payload: { prompt, max_tokens: 8, timeout_ms: 2_000 },
      headers,
    });
  const [first, second] = [ask({ 'x-session-id': 's' }, 'a'), ask({}, CODE)];
  await gateway.workers.held();
  const newer = ask({ 'x-session-id': 's' }, 'ab');
  expect((await first).json()).toMatchObject({ error: { code: 'superseded' } });
  const third = ask({}, `${CODE}x`);
  for (const answer of await Promise.all([second, third, newer])) {
    expect(answer.json()).toMatchObject({ error: { code: 'deadline_exceeded' } });
  }
});

test('tenants never share a session, whether it is named alike or their prompts are alike', async () => {
  const keys = await keysOf([keyEntry('a', 'a'), keyEntry('b', 'b')]);
  const morePrefill = ['127.0.0.1:11', '127.0.0.1:12', '127.0.0.1:13'];
  const gateway = await fakeGateway({ token, capacity: 4096 }, { keys, morePrefill });
  const ask = (key: string, headers: object = {}) =>
    gateway.app.inject({
      method: 'POST',
      url: '/v1/completions',
      payload: { prompt: CODE, max_tokens: 2 },
      headers: { ...bearer(key), ...headers },
    });
  for (const headers of [{ 'x-session-id': 's' }, {}]) {
    const answers = await Promise.all([ask('a', headers), ask('b', headers)]);
    expect(answers.map(({ statusCode }) => statusCode)).toEqual([200, 200]);
  }
  // The same prompt at once: each tenant's is computed, and neither waits for the other.
  expect(new Set(gateway.workers.prefills.map(({ cacheSalt }) => cacheSalt))).toHaveProperty('size', 2);
  expect(gateway.workers.prefills).toHaveLength(4);
});
