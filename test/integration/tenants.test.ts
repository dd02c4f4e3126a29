/** Two tenants of one system, as real processes, with repositories of the same name and of their own. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { bearer, keyEntry } from '../support/api-keys.ts';
import { jsonOfFiles } from '../support/archives.ts';
import { temporaryFolder } from '../support/models.ts';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const LIMIT = 300_000;
const MODEL = 'tiny-coder';
const URLS = { acme: 'git@example.com:acme/shop.git', rival: 'https://example.com/rival/shop' };
const TENANTS = ['acme', 'rival'] as const;
type Tenant = (typeof TENANTS)[number];

const keyOf = (tenant: Tenant) => `key-of-${tenant}`;

/** A repository whose path and whose code say whose it is. */
const filesOf = (tenant: Tenant, repo: string) => ({
  [`${tenant}-${repo}.py`]: `def total_of_${tenant}_${repo}(cart, country):\n    return cart.net * RATES[country]\n`,
});

let system: TestSystem;
beforeAll(async () => {
  const folder = await temporaryFolder();
  const apiKeysFile = join(folder, 'keys.json');
  await writeFile(apiKeysFile, JSON.stringify(TENANTS.map((tenant) => keyEntry(keyOf(tenant), tenant))));
  const store = `lmdb:${join(folder, 'store')}`;
  const gateway = { retrievalBudgetMs: 60_000, servedName: MODEL, store, apiKeysFile };
  system = await startTestSystem(TINY_CODER, {}, { gateway, indexer: { store } });
  const put = async (tenant: Tenant, repo: string, headers: object = {}) => {
    const body = JSON.parse(jsonOfFiles(filesOf(tenant, repo)).toString());
    expect((await ask(tenant, `/v1/repos/${repo}`, body, headers, 'PUT')).status).toBe(200);
  };
  for (const tenant of TENANTS) await put(tenant, 'shop', { 'x-llavacode-remote-url': URLS[tenant] });
  await put('acme', 'secret', { 'x-llavacode-remote-url': 'git@example.com:acme/secret.git' });
}, LIMIT);
afterAll(() => system?.close());

async function ask(tenant: Tenant, path: string, body: object, headers: object = {}, method = 'POST') {
  const all = { 'content-type': 'application/json', ...bearer(keyOf(tenant)), ...headers };
  const answer = await fetch(`${system.url}${path}`, { method, headers: all, body: JSON.stringify(body) });
  return { status: answer.status, text: await answer.text(), header: answer.headers.get('x-llavacode-rag') };
}

const CURSOR = { prompt: 'total = cart.net * RATES[country]\nreturn ', max_tokens: 1, temperature: 0 };
/** What each way to name a repository gives the model, by the paths of the chunks. */
const WAYS: Record<string, (tenant: Tenant, repo: string) => ReturnType<typeof ask>> = {
  'the URL': (tenant, repo) => ask(tenant, `/r/${repo}/v1/completions`, CURSOR),
  'the header': (tenant, repo) => ask(tenant, '/v1/completions', CURSOR, { 'x-llavacode-repo': repo }),
  'the name of the model': (tenant, repo) => ask(tenant, '/v1/completions', { ...CURSOR, model: `${MODEL}@${repo}` }),
  'rag of a named one': (tenant, repo) =>
    ask(tenant, `/r/${repo}/v1/completions`, { ...CURSOR, rag: { mode: 'text' }, return_token_ids: true }),
};
const pathsIn = (text: string) =>
  (JSON.parse(text) as { rag: { chunks: { path: string }[] } }).rag.chunks.map(({ path }) => path);

test.each(Object.keys(WAYS))(
  'by %s each tenant gets its own repository, and none of another tenant',
  {
    timeout: LIMIT,
  },
  async (name) => {
    const way = WAYS[name]!;
    for (const tenant of TENANTS) expect(pathsIn((await way(tenant, 'shop')).text)).toEqual([`${tenant}-shop.py`]);
    expect(pathsIn((await way('acme', 'secret')).text)).toEqual(['acme-secret.py']);
    const gone = await way('rival', 'gone');
    for (const repo of ['secret', 'acme:secret', 'acme%3Asecret', '..%2Facme%2Fsecret']) {
      const { status, header, text } = await way('rival', repo);
      expect(text).not.toContain('acme-');
      // As one that is not there; a URL that is no route's is answered as such.
      expect([status, header]).toBeOneOf([
        [200, gone.header],
        [404, null],
      ]);
    }
  },
);

test('by a remote URL each tenant finds its own checkout alone', { timeout: LIMIT }, async () => {
  const tabby = (tenant: Tenant, git_url: string) => {
    const segments = { prefix: CURSOR.prompt, filepath: 'total.py', git_url };
    return ask(tenant, '/v1/completions', { segments, debug_options: { return_snippets: true } });
  };
  for (const tenant of TENANTS) {
    expect((await tabby(tenant, URLS[tenant])).text).toContain(`${tenant}-shop.py`);
  }
  for (const url of [URLS.acme, 'https://example.com/acme/secret']) {
    const { status, header, text } = await tabby('rival', url);
    expect([status, header, text]).toEqual([
      200,
      'compressed; chunks=0; degraded=repo_not_found',
      expect.not.stringContaining('acme'),
    ]);
  }
});

test('rag.repo, lists and removals see the repositories of the tenant alone', { timeout: LIMIT }, async () => {
  const named = await ask('rival', '/v1/completions', { ...CURSOR, rag: { repo: 'secret' } });
  expect([named.status, named.text]).toEqual([404, expect.not.stringContaining('acme')]);
  const headers = bearer(keyOf('rival'));
  const list = await fetch(`${system.url}/v1/repos`, { headers });
  expect(await list.text()).not.toContain('secret');
  expect((await fetch(`${system.url}/v1/repos/secret`, { method: 'DELETE', headers })).status).toBe(404);
  expect(pathsIn((await WAYS['the header']!('acme', 'secret')).text)).toEqual(['acme-secret.py']);
});
