/** API keys, and the limits of tenants that their file sets. */
import { describe, expect, test } from 'vitest';
import { noteKeys } from '../../../services/gateway/tenants/api-keys.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
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
    ['an end that is not a date', [entry('1', 'a', { expires: 'soon' })], '0.expires'],
    ['an end without a zone', [entry('1', 'a', { expires: '2027-03-31T18:00:00' })], '0.expires'],
    ['a day that there is not', [entry('1', 'a', { expires: '2027-02-30' })], '0.expires'],
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

describe('a key that expires', () => {
  const end = Date.parse('2027-03-31T16:00:00Z');

  test.each([
    ['2027-03-31T18:00:00+02:00', end],
    ['2027-03-31T16:00:00Z', end],
    ['2027-04-01', Date.parse('2027-04-01T00:00:00Z')],
  ])('%s is good until that moment, and refused from then on', async (expires, atMs) => {
    let nowMs = atMs - 1;
    const keys = await keysOf([entry('old', 'a', { expires }), entry('new', 'a')], () => nowMs);
    expect(keys.identify('old').tenant).toBe('a');
    nowMs = atMs;
    const message = `the API key ended at ${new Date(atMs).toISOString()}`;
    expect(() => keys.identify('old')).toThrowError(expect.objectContaining({ code: 'api_key_expired', message }));
    expect(keys.identify('new').tenant, 'the key that takes its place is good').toBe('a');
  });

  test('a client whose key has ended hears 401 and the code, and the words of a wrong key for any other', async () => {
    const keys = await keysOf([entry('old', 'a', { expires: '2001-01-01' })]);
    const { app } = await fakeGateway({ token: spelling('ab') }, { keys });
    const ask = (key: string) => app.inject({ method: 'GET', url: '/v1/models', headers: bearer(key) });
    const ended = await ask('old');
    expect([ended.statusCode, ended.json().error.code]).toEqual([401, 'api_key_expired']);
    expect((await ask('other')).json().error.code).toBe('invalid_api_key');
  });

  test('a file with a key that has ended is loaded: the other keys are good', async () => {
    const keys = await keysOf([entry('old', 'a', { expires: '2001-01-01' }), entry('b', 'b')]);
    expect(keys.identify('b').tenant).toBe('b');
  });

  test('the metric has the first end of each tenant, and forgets tenants whose keys have none any more', async () => {
    const ends = async () =>
      (await metrics.apiKeyNotAfter.get()).values.map(({ labels, value }) => [labels.tenant, value]);
    const keys = await keysOf([
      entry('1', 'acme', { expires: '2027-05-01' }),
      entry('2', 'acme', { expires: '2027-04-01' }),
      entry('3', 'beta', { expires: '2028-01-01' }),
      entry('4', 'gamma'),
    ]);
    noteKeys(keys);
    const seconds = (day: string) => Date.parse(day) / 1000;
    expect(await ends()).toEqual([
      ['beta', seconds('2028-01-01')],
      ['acme', seconds('2027-04-01')],
    ]);
    noteKeys(await keysOf([entry('4', 'gamma')]));
    expect(await ends()).toEqual([]);
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
