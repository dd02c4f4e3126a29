/** What a key may do: every route with every level of access. */
import { createHash } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ACCESS_LEVELS, type ApiKeys, loadApiKeys } from '../../../services/gateway/tenants/api-keys.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';
import { temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();
const token = spelling('ab');
const bearer = (key: string) => ({ authorization: `Bearer ${key}` });

/** One key per level, named like it, and `old` without a level. */
async function keysOfEachLevel(): Promise<ApiKeys> {
  const file = join(dir, 'keys.json');
  const entries = [...ACCESS_LEVELS, undefined].map((access) => {
    const key_sha256 = createHash('sha256')
      .update(access ?? 'old')
      .digest('hex');
    return { key_sha256, tenant: 'acme', repos: ['*'], access };
  });
  await writeFile(file, JSON.stringify(entries));
  return loadApiKeys(file);
}

const ROUTES: [method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'DELETE', url: string, needed: string][] = [
  ['POST', '/v1/completions', 'complete'],
  ['POST', '/v1/chat/completions', 'complete'],
  ['POST', '/v1/engines/x/completions', 'complete'],
  ['POST', '/beta/completions', 'complete'],
  ['POST', '/v1/fim/completions', 'complete'],
  ['POST', '/fim/completions', 'complete'],
  ['POST', '/api/generate', 'complete'],
  ['POST', '/api/show', 'complete'],
  ['GET', '/api/tags', 'complete'],
  ['GET', '/api/version', 'complete'],
  ['GET', '/v1/health', 'complete'],
  ['POST', '/v1/health', 'complete'],
  ['POST', '/v1/events', 'complete'],
  ['POST', '/infill', 'complete'],
  ['POST', '/completion', 'complete'],
  ['POST', '/tokenize', 'complete'],
  ['POST', '/detokenize', 'complete'],
  ['GET', '/props', 'complete'],
  ['GET', '/slots', 'admin'],
  ['GET', '/v1/models', 'complete'],
  ['HEAD', '/v1/models', 'complete'],
  ['GET', '/v1/models/tiny', 'complete'],
  ['GET', '/version', 'complete'],
  ['GET', '/v1/repos', 'complete'],
  ['GET', '/v1/repos/shop', 'complete'],
  ['GET', '/v1/repos/group%2Fshop', 'complete'],
  ['PUT', '/v1/repos/shop', 'index'],
  ['DELETE', '/v1/repos/shop', 'index'],
  ['GET', '/metrics', 'admin'],
  ['GET', '/v1/rollout', 'admin'],
  ['POST', '/v1/rollout', 'admin'],
  ['HEAD', '/metrics', 'admin'],
  ['GET', '/admin/api/live', 'operator'],
  ['GET', '/admin/api/repos', 'operator'],
  ['GET', '/admin/api/left-out?tenant=acme&repo=shop', 'operator'],
  ['GET', '/admin', 'nothing'],
  ['GET', '/admin/', 'nothing'],
  ['GET', '/admin/assets/x.js', 'nothing'],
  ['GET', '/livez', 'nothing'],
  ['GET', '/readyz', 'nothing'],
  ['GET', '/health', 'nothing'],
];
const TABLE = ROUTES.flatMap(([method, url, needed]) =>
  [...ACCESS_LEVELS, 'old'].map((key) => [method, url, key, needed] as const),
);

test.each(TABLE)('%s %s with a key that may %s is served from %s on', async (method, url, key, needed) => {
  const keys = await keysOfEachLevel();
  const { app } = await fakeGateway({ token }, { keys });
  const payload = method === 'POST' ? { prompt: 'x', max_tokens: 1 } : method === 'PUT' ? { files: [] } : undefined;
  const answer = await app.inject({ method, url, headers: bearer(key), payload });
  const levels: readonly string[] = ['nothing', ...ACCESS_LEVELS];
  const isAllowed =
    needed === 'operator' // the file of keys has to say it in so many words
      ? key === 'admin'
      : levels.indexOf(key === 'old' ? 'admin' : key) >= levels.indexOf(needed);
  expect(answer.statusCode === 403).toBe(!isAllowed);
  if (isAllowed || method === 'HEAD') return;
  const { error } = answer.json();
  if (typeof error !== 'string') expect(error).toMatchObject({ code: 'access_denied', type: 'invalid_request_error' });
  expect(error.message ?? error).toContain(needed === 'operator' ? '"access": "admin"' : `"${needed}"`);
});

test('a refusal for want of access comes before the body is read, and is logged', async () => {
  const { app, lines } = await fakeGateway({ token }, { keys: await keysOfEachLevel() });
  const headers = { ...bearer('complete'), 'content-type': 'application/json' };
  const answer = await app.inject({ method: 'PUT', url: '/v1/repos/shop', headers, payload: '{' });
  expect(answer.json().error.code).toBe('access_denied');
  expect(lines.find(({ message }) => message === 'API key refused')).toMatchObject({
    reason: expect.stringContaining('needs a key with access "index"'),
  });
});

test('a route that no line of the table allows keeps a gateway from starting', async () => {
  const { app } = await fakeGateway({ token });
  expect(() => app.get('/v1/unlisted', async () => 'x')).toThrow('access.ts does not say who may use GET /v1/unlisted');
});

test('without a file of keys everybody may do everything', async () => {
  const { app } = await fakeGateway({ token });
  expect((await app.inject({ url: '/metrics' })).statusCode).toBe(200);
});

test('a level that does not exist is refused, with those that do', async () => {
  const file = join(dir, 'wrong.json');
  await writeFile(file, JSON.stringify([{ key_sha256: '0'.repeat(64), tenant: 'a', repos: [], access: 'read' }]));
  await expect(loadApiKeys(file)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining('0.access must be one of complete, index, admin'),
  });
});

test('a key may stand in any header that clients use, and Bearer counts first', async () => {
  const { app } = await fakeGateway({ token }, { keys: await keysOfEachLevel() });
  const status = async (headers: Record<string, string>) =>
    (await app.inject({ url: '/v1/models', headers })).statusCode;
  for (const name of ['x-api-key', 'api-key']) {
    expect(await status({ [name]: 'complete' })).toBe(200);
    expect(await status({ [name]: 'wrong' })).toBe(401);
    expect(await status({ [name]: 'wrong', ...bearer('complete') })).toBe(200);
    expect(await status({ [name]: 'complete', ...bearer('wrong') })).toBe(401);
  }
  expect(await status({ 'x-api-key': '', 'api-key': 'complete' })).toBe(200);
  expect(await status({})).toBe(401);
});
