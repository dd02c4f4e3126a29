/** API keys, and the limits of tenants that their file sets. */
import { describe, expect, test } from 'vitest';
import { bearer, keyEntry as entry, keysOf, sha256 } from '../../support/api-keys.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

describe('requests in flight', () => {
  test('requests in flight are counted per tenant, over all of its keys', async () => {
    const limits = { max_inflight: 1 };
    const keys = await keysOf([entry('a1', 'a', limits), entry('a2', 'a', limits), entry('b', 'b')]);
    const gateway = await fakeGateway({ token: spelling('ab'), holdAt: 'in decode' }, { keys });
    const post = (key: string, body: object = {}) =>
      gateway.app.inject({
        method: 'POST',
        url: '/v1/completions',
        headers: bearer(key),
        payload: { prompt: 'x', timeout_ms: 3_000, session: 's', ...body },
      });
    const held = post('a1');
    await gateway.workers.held();
    const refused = await post('a2', { session: 'other' });
    expect(refused.statusCode).toBe(429);
    expect(refused.json().error).toMatchObject({ code: 'quota_exceeded', type: 'rate_limit_error' });
    expect(refused.headers).toMatchObject({
      'retry-after': '1',
      'x-llavacode-limit': 'max-inflight',
      'x-llavacode-refused-by': 'max-inflight',
    });
    const others = [post('b'), post('b', { session: 'other' })];
    // A request does not count the one that it supersedes: the next keystroke in the same place is let in.
    gateway.workers.model.holdAt = undefined;
    expect((await post('a2')).statusCode).toBe(200);
    expect((await held).json().error.code).toBe('superseded');
    expect((await Promise.all(others)).map(({ statusCode }) => statusCode)).not.toContain(429);
  });
});

describe('tokens per minute', () => {
  test('tokens per minute are those of prompts and outputs, with any of the tenant’s keys', async () => {
    const limits = { tokens_per_minute: 25 };
    const keys = await keysOf([entry('a1', 'a', limits), entry('a2', 'a', limits)]);
    const gateway = await fakeGateway({ token: () => 70 }, { keys });
    const post = (key: string) =>
      gateway.app.inject({
        method: 'POST',
        url: '/v1/completions',
        headers: bearer(key),
        payload: { prompt: Array(10).fill(5), max_tokens: 10 },
      });
    expect((await post('a1')).json().usage.total_tokens).toBe(20);
    const refused = await post('a2');
    expect(refused.json().error.code).toBe('quota_exceeded');
    expect(refused.headers).toMatchObject({ 'x-llavacode-limit': 'tokens-per-minute' });
    expect(Number(refused.headers['retry-after'])).toBeGreaterThanOrEqual(1);
  });

  test('refused requests cost no tokens per minute', async () => {
    const keys = await keysOf([entry('a', 'a', { tokens_per_minute: 11 })]);
    const gateway = await fakeGateway({ token: () => 70 }, { keys });
    const payload = { prompt: Array(10).fill(5), max_tokens: 1 };
    const post = () => gateway.app.inject({ method: 'POST', url: '/v1/completions', headers: bearer('a'), payload });
    gateway.pool.setPrefill([]);
    expect((await post()).json().error.code).toBe('no_worker');
    expect(gateway.lines.find(({ message }) => message === 'completion')).toMatchObject({
      usage: { prompt_tokens: 0 },
    });
    gateway.pool.setPrefill([gateway.workers.prefill.address]);
    await gateway.pool.refresh();
    expect((await post()).statusCode).toBe(200);
  });
});

describe('a keys file', () => {
  test.each([
    ['two limits of one tenant', [entry('1', 'a', { max_inflight: 1 }), entry('2', 'a')], '1.max_inflight'],
    ['one key twice', [entry('1', 'a'), { ...entry('1', 'b'), key_sha256: sha256('1').toUpperCase() }], '1.key_sha256'],
    ['no limit at all', [entry('1', 'a', { tokens_per_minute: 0 })], '0.tokens_per_minute'],
    ['an unknown field', [entry('1', 'a', { max_tokens: 5 })], '0'],
    ['a key that is not hashed', [{ ...entry('1', 'a'), key_sha256: 'secret' }], '0.key_sha256'],
  ])('a keys file with %s is refused, and the message names the place', async (_, entries, place) => {
    await expect(keysOf(entries)).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringContaining(place),
    });
  });

  test('a keys file without entries lets nobody in', async () => {
    const keys = await keysOf([]);
    expect(() => keys.identify('x')).toThrowError(expect.objectContaining({ code: 'invalid_api_key' }));
  });
});

test('the default repository of a key must be the name of one that it may use', async () => {
  const load = (fields: object) => keysOf([entry('k', 'a', fields)]);
  expect((await load({ default_repo: 'shop' })).identify('k').defaultRepo).toBe('shop');
  expect((await load({ default_repo: 'shop', repos: ['shop'] })).identify('k').defaultRepo).toBe('shop');
  for (const fields of [{ default_repo: 'shop', repos: ['web'] }, { default_repo: '../x' }, { default_repo: '' }]) {
    await expect(load(fields)).rejects.toThrow('0.default_repo is not the name of a repository that this key may use');
  }
});
