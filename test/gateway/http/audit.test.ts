/** What the audit log says of each use of a repository and each action of an admin, over a real store and indexer. */
import { request } from 'node:http';
import { expect, test, vi } from 'vitest';
import type { AuditEntry } from '../../../services/lib/process/audit-log.ts';
import { createRetrieval } from '../../../services/lib/rag/search/retrieval.ts';
import { bearer, keyEntry, keysOf, sha256 } from '../../support/api-keys.ts';
import { listeningGateway, spelling } from '../../support/fake-gateway.ts';
import { fakeIndexer, python } from '../../support/fake-indexer.ts';

const TEXT = 'qzmarkerzq';

async function start(model = {}) {
  const entries: AuditEntry[] = [];
  const { store, client } = await fakeIndexer();
  const keys = await keysOf([
    keyEntry('boss', 'acme'),
    keyEntry('editor', 'acme', { access: 'complete', repos: ['shop'] }),
  ]);
  const audit = { write: (entry: AuditEntry) => void entries.push(entry), close: async () => {} };
  const retrieval = createRetrieval(store, { queryLines: 10 });
  const parts = { keys, audit, store, indexer: client, retrieval, connectTimeoutMs: 10_000 };
  const gateway = await listeningGateway({ token: spelling('return x'), ...model }, parts);
  const ask = async (key: string, method: 'GET' | 'POST' | 'PUT' | 'DELETE' | 'HEAD', url: string, body?: object) => {
    const before = entries.length;
    const headers = { ...bearer(key), 'x-request-id': 'r1' };
    const { statusCode } = await gateway.app.inject({ method, url, headers, ...(body && { payload: body }) });
    return { status: statusCode, entries: entries.slice(before) };
  };
  return { ...gateway, entries, ask };
}

const files = { files: [{ path: 'a.py', content: python('a', 12) }] };
const entry = (key: string, action: string, fields: object) => ({
  action,
  outcome: 'ok',
  status: 200,
  request_id: 'r1',
  tenant: 'acme',
  key: sha256(key).slice(0, 16),
  client: '127.0.0.1',
  repo: 'shop',
  detail: {},
  ...fields,
});

test('each use of a repository is one entry: who, what and how it ended', async () => {
  const { ask } = await start();
  const prompt = { prompt: `${TEXT} def`, max_tokens: 2 };
  const rag = { repo: 'shop', mode: 'text' };
  expect((await ask('boss', 'PUT', '/v1/repos/shop', files)).entries).toEqual([entry('boss', 'repo.index', {})]);
  expect((await ask('editor', 'POST', '/v1/completions', { ...prompt, rag })).entries).toEqual([
    entry('editor', 'repo.read', { detail: { mode: 'text', chunks: expect.any(Number) } }),
  ]);
  expect((await ask('editor', 'GET', '/v1/repos')).entries).toEqual([entry('editor', 'repo.list', { repo: null })]);
  expect((await ask('editor', 'GET', '/v1/repos/shop')).entries).toEqual([entry('editor', 'repo.describe', {})]);
  expect((await ask('boss', 'DELETE', '/v1/repos/shop')).entries).toEqual([entry('boss', 'repo.delete', {})]);
});

test('what an admin alone may do is an entry, whoever tried it', async () => {
  const { ask } = await start();
  const admin = { repo: null, detail: { route: 'GET /metrics' } };
  expect((await ask('boss', 'GET', '/metrics')).entries).toEqual([entry('boss', 'admin', admin)]);
  expect((await ask('editor', 'HEAD', '/metrics')).entries).toEqual([
    entry('editor', 'admin', { ...admin, outcome: 'access_denied', status: 403 }),
  ]);
});

test('what is refused is an entry, with the code, and a client’s text is in none', async () => {
  const { ask, entries } = await start();
  const refused = (fields: object) => entry('editor', 'repo.read', { outcome: 'repo_not_found', ...fields });
  const detail = { mode: 'none', chunks: 0 };
  const prompt = { prompt: TEXT, max_tokens: 2 };
  expect((await ask('editor', 'POST', '/v1/completions', { ...prompt, rag: { repo: 'secret' } })).entries).toEqual([
    refused({ repo: 'secret', status: 404, detail }),
  ]);
  expect((await ask('editor', 'DELETE', '/v1/repos/shop')).entries).toMatchObject([
    { action: 'repo.delete', outcome: 'access_denied', status: 403, repo: 'shop' },
  ]);
  expect((await ask('boss', 'PUT', `/v1/repos/${TEXT}%20x`, files)).entries).toMatchObject([
    { action: 'repo.index', outcome: 'invalid_request', status: 400, repo: null },
  ]);
  expect((await ask('editor', 'POST', '/v1/completions', { ...prompt, rag: { repo: `${TEXT} x` } })).status).toBe(400);
  expect(JSON.stringify(entries)).not.toContain(TEXT);
  for (const key of ['boss', 'editor']) expect(JSON.stringify(entries)).not.toContain(`"${key}"`);
});

test('requests without a repository, and those whose key is not known, are no entries', async () => {
  const { ask } = await start();
  expect(await ask('editor', 'POST', '/v1/completions', { prompt: 'x', max_tokens: 2 })).toEqual({
    status: 200,
    entries: [],
  });
  expect(await ask('stranger', 'GET', '/metrics')).toEqual({ status: 401, entries: [] });
  expect(await ask('editor', 'GET', '/v1/models')).toEqual({ status: 200, entries: [] });
});

test('a client that hangs up leaves an entry', async () => {
  const { ask, entries, port, workers } = await start({ holdAt: 'in decode' });
  await ask('boss', 'PUT', '/v1/repos/shop', files);
  const headers = { ...bearer('editor'), 'content-type': 'application/json' };
  const call = request({ port, method: 'POST', path: '/v1/completions', headers });
  call.on('error', () => {});
  call.end(JSON.stringify({ prompt: 'def', max_tokens: 4, rag: { repo: 'shop', mode: 'text' } }));
  await workers.held();
  call.destroy();
  await vi.waitUntil(() => entries.length === 2);
  expect(entries[1]).toMatchObject({ action: 'repo.read', outcome: 'client_gone', status: null, repo: 'shop' });
});
