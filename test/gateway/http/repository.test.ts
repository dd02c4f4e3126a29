/** The repository of requests that do not name one in `rag`. */
import type { FastifyRequest } from 'fastify';
import { expect, test } from 'vitest';
import { withRepository } from '../../../services/gateway/http/repository.ts';
import { COMPLETION_DEFAULTS } from '../../../services/gateway/request.ts';
import type { ApiKeys } from '../../../services/gateway/tenants/api-keys.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { bearer, keyEntry, keysOf } from '../../support/api-keys.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';
import { MemoryStore } from '../../support/memory-store.ts';

const CODE = Array.from({ length: 10 }, (_, i) => `value_${i} = compute(${i})`).join('\n');
const REMOTES = { shop: 'example.com/acme/shop', 'owner/name': undefined };

/** A gateway whose retrieval knows two repositories, and says which one it was asked for. */
async function start(keys?: ApiKeys) {
  const asked: string[] = [];
  const store = new MemoryStore();
  for (const [repo, remote] of Object.entries(REMOTES)) {
    store.publishFiles(repo, { 'a.py': CODE }, remote === undefined ? {} : { remote });
  }
  const gateway = await fakeGateway(
    { token: spelling('ab') },
    {
      ...(keys && { keys }),
      store,
      retrieval: {
        retrieve: async ({ repo }) => {
          asked.push(repo);
          const name = repo.replace(/^.*:/, '');
          if (!(name in REMOTES)) throw new ServingError('repo_not_found', `there is no index of ${repo}`);
          return { indexVersion: 'v', retriever: 'jaccard', fingerprint: 'context', chunks: [] };
        },
      },
    },
  );
  const post = async (url: string, body: object = {}, headers: Record<string, string> = {}) => {
    const payload = { prompt: 'x', max_tokens: 1, ...body };
    const {
      statusCode,
      headers: answered,
      ...rest
    } = await gateway.app.inject({ method: 'POST', url, payload, headers });
    return { status: statusCode, headers: answered, body: rest.json() };
  };
  return { ...gateway, asked, post };
}

test.each([
  ['/r/shop/v1/completions', 'shop'],
  ['/r/owner/name/v1/completions', 'owner/name'],
  ['/r/owner%2Fname/v1/completions?x=1', 'owner/name'],
  ['/r/v1/completions/v1/completions', 'v1/completions'],
])('the URL %s asks for the repository %s', async (url, repo) => {
  const { post, asked } = await start();
  expect(await post(url)).toMatchObject({ status: 200 });
  expect(asked).toEqual([repo]);
});

test('a repository before the URL of every route leads to that route, with its access and its methods', async () => {
  const keys = await keysOf([keyEntry('k', 'default', { access: 'complete' })]);
  const { app } = await start(keys);
  const get = (url: string, headers = {}) => app.inject({ url, headers });
  expect((await get('/r/shop/v1/models', bearer('k'))).json()).toMatchObject({ data: [{ id: 'tiny' }] });
  expect((await get('/r/shop/v1/models/tiny', bearer('k'))).json()).toMatchObject({ id: 'tiny' });
  expect((await get('/r/shop/v1/models')).statusCode).toBe(401);
  expect((await get('/r/shop/metrics', bearer('k'))).statusCode).toBe(403);
  expect((await get('/r/shop/v1/completions', bearer('k'))).statusCode).toBe(405);
  for (const url of ['/r/shop', '/r/shop/', '/r/shop/nothing', '/r/v1/completions', '/r//v1/completions']) {
    expect((await get(url, bearer('k'))).statusCode, url).toBe(404);
  }
});

test('a header and the name of the model ask for a repository', async () => {
  const { post, asked } = await start();
  await post('/v1/completions', {}, { 'x-llavacode-repo': 'shop' });
  const answer = await post('/v1/completions', { model: 'tiny@owner/name' });
  expect(asked).toEqual(['shop', 'owner/name']);
  expect(answer.body).toMatchObject({ model: 'tiny', rag: { mode: 'compressed' } });
  expect(await post('/v1/completions', { model: 'large@shop' })).toMatchObject({ status: 404 });
});

test.each([
  ['/v1/fim/completions', { model: 'codestral-latest@shop' }, 200],
  ['/v1/fim/completions', { model: 'tiny@shop' }, 200],
  ['/v1/fim/completions', { model: 'other@shop' }, 404],
  ['/v1/engines/copilot-codex@shop/completions', {}, 200],
  ['/completion', { model: 'any@shop', n_predict: 1 }, 200],
  ['/api/generate', { model: 'tiny@shop:latest', stream: false }, 200],
  ['/api/generate', { model: 'tiny:latest@shop', stream: false }, 200],
  ['/api/generate', { model: 'other@shop', stream: false }, 404],
])('on %s %j names a repository, too: %i', async (url, body, status) => {
  const { post, asked } = await start();
  expect((await post(url, body)).status).toBe(status);
  expect(asked).toEqual(status === 200 ? ['shop'] : []);
});

test('the routes that tell of a model know it by its name with a repository', async () => {
  const { app } = await start();
  const answers = await Promise.all([
    app.inject('/v1/models/tiny@shop'),
    app.inject({ method: 'POST', url: '/api/generate', payload: { model: 'tiny@shop' } }), // loads it
  ]);
  expect(answers.map(({ statusCode }) => statusCode)).toEqual([200, 200]);
});

test('of several repositories the first counts: rag, the URL, the header, the model, the key', async () => {
  const { post, asked } = await start(await keysOf([keyEntry('k', 'default', { default_repo: 'of-key' })]));
  const all = { model: 'tiny@of-model', rag: { repo: 'shop' } };
  const headers = { ...bearer('k'), 'x-llavacode-repo': 'of-header' };
  await post('/r/of-url/v1/completions', all, headers);
  await post('/r/of-url/v1/completions', { ...all, rag: { top_k: 3 } }, headers);
  await post('/v1/completions', { model: all.model }, headers);
  await post('/v1/completions', { model: all.model }, bearer('k'));
  await post('/v1/completions', {}, bearer('k'));
  expect(asked).toEqual(['shop', 'of-url', 'of-header', 'of-model', 'of-key']);
  const off = await post('/r/of-url/v1/completions', { rag: { mode: 'off' } }, headers);
  expect(off.body.rag).toMatchObject({ mode: 'off' });
  expect(asked).toHaveLength(5);
});

test('a repository that is not known is 404 in rag, and elsewhere costs the context, as the answer says', async () => {
  const { post, stream } = await start();
  expect(await post('/v1/completions', { rag: { repo: 'gone' } })).toMatchObject({
    status: 404,
    body: { error: { code: 'repo_not_found' } },
  });
  for (const repo of ['gone', '../etc', 'a'.repeat(300)]) {
    const answer = await post('/v1/completions', {}, { 'x-llavacode-repo': repo });
    expect(answer.status, repo).toBe(200);
    expect(answer.body.rag).toMatchObject({ chunks: [], index_version: null, degraded: 'repo_not_found' });
    expect(answer.headers['x-llavacode-rag']).toBe('compressed; chunks=0; degraded=repo_not_found');
  }
  const [first] = await stream({ prompt: 'x', max_tokens: 1, model: 'tiny@gone' });
  expect(first!.rag).toMatchObject({ degraded: 'repo_not_found' });
});

test('a repository that a key may not use is, for that key, one that is not there', async () => {
  const keys = await keysOf([
    keyEntry('a', 'default', { repos: ['owner/name'], default_repo: 'owner/name' }),
    keyEntry('b', 'other', { default_repo: 'shop' }),
  ]);
  const { post, asked } = await start(keys);
  const forbidden = await post('/r/shop/v1/completions', {}, bearer('a'));
  const missing = await post('/r/gone/v1/completions', {}, bearer('a'));
  expect(forbidden.body.rag).toEqual(missing.body.rag);
  expect(asked).toEqual([]);
  await post('/v1/completions', {}, bearer('a'));
  await post('/v1/completions', {}, bearer('b'));
  expect(asked).toEqual(['owner/name', 'other:shop']);
});

test('rag needs a repository from somewhere; several prompts, or an echo, get no context by themselves', async () => {
  const { post, asked } = await start(await keysOf([keyEntry('k', 'a'), keyEntry('d', 'a', { default_repo: 'shop' })]));
  const refused = await post('/v1/completions', { rag: { top_k: 3 } }, bearer('k'));
  expect(refused).toMatchObject({ status: 400, body: { error: { param: 'rag.repo' } } });
  expect(refused.body.error.message).toContain('is required unless rag.mode is off');
  for (const body of [{ prompt: ['x', 'y'] }, { echo: true }]) {
    const answer = await post('/v1/completions', body, bearer('d'));
    expect(answer.status).toBe(200);
    expect(answer.body.rag).toBeUndefined();
  }
  expect(asked).toEqual([]);
});

test('a remote URL asks for the repository of that checkout, where nothing else names one', async () => {
  const identity = { tenant: 'default', limits: {}, access: 'complete' as const, mayUse: () => true };
  const request = {
    ...COMPLETION_DEFAULTS,
    prompts: ['x'],
    gitUrl: 'git@example.com:acme/shop',
    filePath: 'a.py',
  };
  const remotes = { find: async (url: string) => (url.endsWith('shop') ? 'shop' : undefined) };
  const ragOf = async (change: object, headers = {}) => {
    const http = { raw: {}, headers, identity } as unknown as FastifyRequest;
    return (await withRepository(http, { ...request, ...change }, remotes, new AbortController().signal)).rag;
  };
  expect(await ragOf({})).toMatchObject({ repo: 'shop', path: 'a.py', mode: 'compressed', isUnknown: false });
  expect(await ragOf({ gitUrl: 'git@example.com:gone' })).toMatchObject({ repo: undefined, isUnknown: true });
  expect(await ragOf({}, { 'x-llavacode-repo': 'other' })).toMatchObject({ repo: 'other' });
});
