/** `/v1/repos` over a real indexer service and a real store. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { Agent, request as httpRequest, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { type ApiKeys, loadApiKeys } from '../../../services/gateway/tenants/api-keys.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { createRetrieval } from '../../../services/lib/rag/search/retrieval.ts';
import { withBreaker } from '../../../services/lib/rag/store/breaker.ts';
import { withEmbeddings } from '../../../services/lib/rag/store/row.ts';
import { type Files, jsonOfFiles, tarGzOfFiles, tarOfFiles, zipOfFiles } from '../../support/archives.ts';
import { gate } from '../../support/fake-engine.ts';
import { fakeGateway } from '../../support/fake-gateway.ts';
import { fakeIndexer, python } from '../../support/fake-indexer.ts';
import { MemoryStore } from '../../support/memory-store.ts';

const FILES = { 'a.py': python('a', 12), 'web/b.ts': python('b', 10), 'README.md': 'shop' };

interface Settings {
  readonly keys?: ApiKeys;
  readonly connectTimeoutMs?: number;
  readonly uploadTimeoutMs?: number;
}

async function start({ keys, connectTimeoutMs = 10_000, uploadTimeoutMs = 60_000 }: Settings = {}) {
  const indexer = await fakeIndexer();
  const { store, client } = indexer;
  const gateway = await fakeGateway(
    { token: () => 70 },
    {
      keys,
      retrieval: createRetrieval(store, { queryLines: 10 }),
      store,
      indexer: client,
      connectTimeoutMs,
      uploadTimeoutMs,
    },
  );
  const ask = async (method: 'GET' | 'PUT' | 'DELETE', url: string, body?: Buffer | object, headers: object = {}) => {
    const type = Buffer.isBuffer(body) ? {} : { 'content-type': 'application/json' };
    const payload = Buffer.isBuffer(body) || body === undefined ? body : Buffer.from(JSON.stringify(body));
    const answer = await gateway.app.inject({ method, url, payload, headers: { ...(body && type), ...headers } });
    return { status: answer.statusCode, body: answer.json(), headers: answer.headers };
  };
  const put = (url: string, body: Buffer | object, headers: object = {}) => ask('PUT', url, body, headers);
  return { ...indexer, gateway, ask, put };
}

const files = (contents: Record<string, string>) => ({
  files: Object.entries(contents).map(([path, content]) => ({ path, content })),
});
const refused = (status: number, code: string, message = '') =>
  expect.objectContaining({
    status,
    body: { error: expect.objectContaining({ code, message: expect.stringContaining(message) }) },
  });

describe('PUT /v1/repos/{repo}', () => {
  test('PUT indexes files, and later only those that changed', async () => {
    const { put, ask, encoder } = await start();
    const first = await put('/v1/repos/acme/shop', files(FILES));
    expect(first).toMatchObject({
      status: 200,
      body: {
        object: 'repo.index',
        repo: 'acme/shop',
        version: expect.stringMatching(/^[0-9a-f]{16}$/),
        fingerprint: 'context',
        changed: true,
        files: 3,
        chunks: 4,
        embedded: 4,
        reused: 0,
        removed: 0,
        skipped: { generated: 0, binary: 0 },
      },
    });
    expect(await ask('GET', '/v1/repos/acme%2Fshop')).toMatchObject({
      status: 200,
      body: {
        object: 'repo',
        repo: 'acme/shop',
        version: first.body.version,
        chunks: 4,
        files: 3,
        stale: false,
        modes: ['compressed', 'mixed', 'text'],
        retrievers: ['jaccard', 'bm25'],
        languages: { markdown: 1, python: 1, typescript: 1 },
        updated_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
      },
    });
    const second = await put('/v1/repos/acme/shop', files({ ...FILES, 'README.md': 'changed' }));
    expect(second.body).toMatchObject({ changed: true, embedded: 1, reused: 3, removed: 0 });
    expect(await put('/v1/repos/acme/shop', files({ ...FILES, 'README.md': 'changed' }))).toMatchObject({
      body: { changed: false, embedded: 0, removed: 1, version: second.body.version },
    });
    expect(encoder.texts).toHaveLength(5);
  });

  test.each<[string, (files: Files) => Buffer | Promise<Buffer>]>([
    ['application/x-tar', tarOfFiles],
    ['application/gzip', tarGzOfFiles],
    ['application/zip', zipOfFiles],
    ['application/json; charset=utf-8', (contents) => jsonOfFiles(contents as Record<string, string>)],
  ])('the same files make the same version when sent as %s', async (type, make) => {
    const { put } = await start();
    const whole = await put('/v1/repos/whole', files(FILES));
    const other = await put('/v1/repos/other', await make(FILES), { 'content-type': type });
    expect(other).toMatchObject({ status: 200, body: { version: whole.body.version, repo: 'other' } });
    const wrapped = Object.fromEntries(Object.entries(FILES).map(([path, text]) => [`top/${path}`, text]));
    if (type.includes('json')) return;
    const stripped = await put('/v1/repos/third?strip_components=1', await make(wrapped), { 'content-type': type });
    expect(stripped.body.version).toBe(whole.body.version);
  });

  test('a change set leads to the version that all files would make', async () => {
    const { put, ask } = await start();
    const base = await put('/v1/repos/shop', files(FILES));
    const changes = [
      { path: 'a.py', content: python('other', 20) },
      { path: 'README.md', deleted: true },
      { path: 'never.py', deleted: true },
      { path: 'Z.py', content: python('z', 3) },
    ];
    const changed = await put('/v1/repos/shop', { changes, base_version: base.body.version });
    expect(changed.body).toMatchObject({ files: 2, chunks: 5, embedded: 4, reused: 1, removed: 0 });
    const after = { 'a.py': python('other', 20), 'web/b.ts': FILES['web/b.ts'], 'Z.py': python('z', 3) };
    const whole = await put('/v1/repos/whole', files(after));
    expect(changed.body.version).toBe(whole.body.version);
    const { body } = await ask('GET', '/v1/repos/shop');
    expect(body).toMatchObject({ files: 3, languages: { python: 2, typescript: 1 } });
    // This change set was made against a version that is gone.
    expect(await put('/v1/repos/shop', { changes, base_version: base.body.version })).toEqual(
      refused(409, 'index_moved', base.body.version),
    );
    expect(await put('/v1/repos/nobody', { changes })).toEqual(refused(404, 'repo_not_found'));
  });

  test('a client that asks for events is told the progress', async () => {
    const { gateway, encoder } = await start();
    const answer = await gateway.app.inject({
      method: 'PUT',
      url: '/v1/repos/shop',
      headers: { 'content-type': 'application/json', accept: 'text/event-stream' },
      payload: JSON.stringify(files(FILES)),
    });
    expect(answer.headers['content-type']).toContain('text/event-stream');
    const events = answer.payload.trim().split('\n\n');
    expect(events.pop()).toBe('data: [DONE]');
    const bodies = events.map((event) => JSON.parse(event.slice('data: '.length)));
    expect(bodies.at(-1)).toMatchObject({ object: 'repo.index', changed: true, chunks: 4 });
    expect(bodies.at(-2)).toEqual({ object: 'repo.progress', files: 3, files_read: 3, chunks: 4, embedded: 4 });
    encoder.before = async () => {
      throw new Error('out of luck');
    };
    const failing = await gateway.app.inject({
      method: 'PUT',
      url: '/v1/repos/fails',
      headers: { 'content-type': 'application/json', accept: 'text/event-stream' },
      payload: JSON.stringify(files(FILES)),
    });
    expect(failing.payload).toContain('"code":"internal"');
    expect(failing.payload).not.toContain('out of luck');
  });

  test('a body that is not an upload is refused', async () => {
    const { put, ask } = await start();
    expect(await put('/v1/repos/shop', { files: [{ path: '../x', content: '' }] })).toEqual(
      refused(400, 'invalid_request', '../x'),
    );
    expect(await put('/v1/repos/shop', Buffer.from('x'), { 'content-type': 'text/plain' })).toEqual(
      refused(415, 'unsupported_media_type'),
    );
    expect(await put('/v1/repos/shop', Buffer.from('x'), { 'content-type': 'application/zip' })).toEqual(
      refused(400, 'invalid_request', 'not a valid zip'),
    );
    expect(await put('/v1/repos/shop?strip=1', files(FILES))).toEqual(refused(400, 'invalid_request', 'strip'));
    for (const name of ['.git', 'a b', 'acme:shop', 'a%2F..%2Fb', '%7Bx%7D', 'a%00b', '']) {
      const { status, body } = await put(`/v1/repos/${name}`, files(FILES));
      expect([400, 404]).toContain(status);
      expect(body.error.code).toMatch(/invalid_request|not_found/);
    }
    // The message quotes a text that is longer than a trailer of HTTP/2, and half of a character.
    for (const body of [`{"files":[],"${'é'.repeat(30_000)}":1}`, '😀', '{"files":[],"\\ud800":1}']) {
      const headers = { 'content-type': 'application/json' };
      expect(await put('/v1/repos/shop', Buffer.from(body), headers)).toEqual(refused(400, 'invalid_request'));
    }
    expect(await ask('PUT', '/v1/repos/shop')).toEqual(refused(415, 'unsupported_media_type'));
    expect(await put('/v1/repos/shop', Buffer.alloc(1_100_000), { 'content-type': 'application/x-tar' })).toEqual(
      refused(413, 'payload_too_large', '--max-upload-bytes'),
    );
    expect((await ask('GET', '/v1/repos')).body).toEqual({ object: 'list', data: [] });
  });

  test('whatever was refused, the connection stays usable for the next request', async () => {
    const { gateway } = await start();
    await gateway.app.listen({ host: '127.0.0.1', port: 0 });
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    onTestFinished(async () => {
      agent.destroy();
      await gateway.app.close();
    });
    const { port } = gateway.app.server.address() as AddressInfo;
    const sockets = new Set<unknown>();
    const send = async (method: string, path: string, type?: string, body?: Buffer) => {
      const call = httpRequest({ port, method, path, agent, ...(type && { headers: { 'content-type': type } }) });
      call.on('socket', (socket) => sockets.add(socket));
      call.end(body);
      const [response] = (await once(call, 'response')) as [IncomingMessage];
      for await (const _ of response);
      return response.statusCode;
    };
    for (const type of ['application/x-tar', 'application/zip', 'application/json', 'text/plain']) {
      expect([400, 413, 415]).toContain(await send('PUT', '/v1/repos/shop', type, Buffer.alloc(8_000_000, 1)));
      expect(await send('GET', '/livez')).toBe(200);
    }
    expect(sockets.size).toBe(1);
  });

  test('an upload ends when the indexer falls silent', async () => {
    const { put, encoder } = await start({ uploadTimeoutMs: 300 });
    encoder.before = (signal) =>
      new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));
    expect(await put('/v1/repos/shop', files(FILES))).toEqual(refused(503, 'worker_stalled', '--upload-timeout-ms'));
  });

  test('a gateway without an indexer says so', async () => {
    const { app } = await fakeGateway({ token: () => 70 });
    const answer = await app.inject({ method: 'PUT', url: '/v1/repos/shop', payload: files(FILES) });
    expect(answer.statusCode).toBe(503);
    expect(answer.json().error.code).toBe('no_indexer');
    expect((await app.inject({ url: '/v1/repos' })).json().error.code).toBe('store_unavailable');
    const wrong = await app.inject({ method: 'POST', url: '/v1/repos/shop', payload: {} });
    expect(wrong.statusCode).toBe(405);
    expect(wrong.headers['allow']).toBe('GET, PUT, DELETE');
  });

  test('a repository is indexed by one upload at a time, and others are not held up', async () => {
    const { put, encoder } = await start();
    let open = () => {};
    let arrived = () => {};
    const encoding = new Promise<void>((resolve) => {
      arrived = resolve;
    });
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    encoder.before = async () => {
      arrived();
      await gate;
    };
    const slow = put('/v1/repos/shop', files(FILES));
    await encoding;
    expect(await put('/v1/repos/shop', files(FILES))).toEqual(refused(409, 'index_locked'));
    encoder.before = async () => {};
    expect((await put('/v1/repos/other', files(FILES))).status).toBe(200);
    open();
    expect((await slow).status).toBe(200);
  });

  test('indexing stops when its client goes or a drain runs out of time, and the old version stays', async () => {
    const { gateway, put, store, encoder } = await start();
    const { body } = await put('/v1/repos/shop', files(FILES));
    let stopped = 0;
    let arrived = () => {};
    encoder.before = (signal) => {
      arrived();
      return new Promise((_, reject) =>
        signal?.addEventListener('abort', () => {
          stopped++;
          reject(signal.reason);
        }),
      );
    };
    await gateway.app.listen({ host: '127.0.0.1', port: 0 });
    onTestFinished(() => gateway.app.close());
    const { port } = gateway.app.server.address() as AddressInfo;
    const send = async () => {
      const encoding = new Promise<void>((resolve) => {
        arrived = resolve;
      });
      const call = httpRequest({
        port,
        method: 'PUT',
        path: '/v1/repos/shop',
        headers: { 'content-type': 'application/json' },
      });
      call.on('error', () => {});
      call.end(JSON.stringify(files({ 'new.py': python('new', 10) })));
      await encoding;
      return call;
    };
    (await send()).destroy();
    await vi.waitUntil(() => stopped === 1);
    const call = await vi.waitFor(send);
    const answered = once(call, 'response');
    gateway.draining.abort(new ServingError('draining', 'shutting down'));
    await gateway.inflight.drain(10);
    const [response] = (await answered) as [{ statusCode: number }];
    expect(response.statusCode).toBe(503);
    await vi.waitUntil(() => stopped === 2);
    expect((await store.head('shop'))?.version).toBe(body.version);
  });
});

describe('a restart', () => {
  test('a gateway that restarts finishes running uploads and takes no new ones', async () => {
    const { gateway, put, ask, client, encoder } = await start();
    await put('/v1/repos/old', files(FILES));
    const [encoding, removing, go] = [gate(), gate(), gate()];
    encoder.before = () => {
      encoding.open();
      return go.opened;
    };
    const remove = client.delete;
    client.delete = async (...call) => {
      removing.open();
      await go.opened;
      return remove(...call);
    };
    const running = [put('/v1/repos/shop', files({ 'new.py': python('new', 10) })), ask('DELETE', '/v1/repos/old')];
    await Promise.all([encoding.opened, removing.opened]);
    gateway.draining.abort(new ServingError('draining', 'shutting down'));
    const drained = gateway.inflight.drain(60_000);
    expect(await put('/v1/repos/other', files(FILES))).toEqual(refused(503, 'draining'));
    expect(await ask('DELETE', '/v1/repos/shop')).toEqual(refused(503, 'draining'));
    go.open();
    expect((await Promise.all(running)).map(({ status }) => status)).toEqual([200, 200]);
    await drained;
  });

  test('a gateway that restarts refuses with a code to its very end', async () => {
    const { gateway } = await start();
    const { app } = gateway;
    const late = new Promise<Response>((resolve, reject) => {
      app.addHook('preClose', async () => {
        const { port } = app.server.address() as AddressInfo;
        await fetch(`http://127.0.0.1:${port}/v1/repos/shop`, { method: 'DELETE' }).then(resolve, reject);
      });
    });
    await app.listen({ host: '127.0.0.1', port: 0 });
    gateway.draining.abort(new ServingError('draining', 'shutting down'));
    await app.close();
    const answer = await late;
    expect([answer.status, await answer.json()]).toMatchObject([503, { error: { code: 'draining' } }]);
  });

  test('a restart of the indexer is waited for', async () => {
    const { put, ask, client, encoder, stop, restart } = await start();
    await put('/v1/repos/old', files(FILES));
    const [encoding, refusing, go] = [gate(), gate(), gate()];
    encoder.before = () => {
      encoding.open();
      return go.opened;
    };
    const running = put('/v1/repos/running', files({ 'new.py': python('new', 10) }));
    await encoding.opened;
    const stopped = stop();
    const { describe: look } = client;
    let refusals = 0;
    client.describe = (signal) =>
      look(signal).catch((error) => {
        if (++refusals === 2) refusing.open();
        throw error;
      });
    const sent = [put('/v1/repos/shop', files(FILES)), ask('DELETE', '/v1/repos/old')];
    await refusing.opened;
    go.open();
    await stopped;
    await restart();
    expect((await Promise.all([running, ...sent])).map(({ status }) => status)).toEqual([200, 200, 200]);
  });

  test('a restart of the indexer that takes too long is not waited for', async () => {
    const { put, ask, stop } = await start({ connectTimeoutMs: 50 });
    await stop();
    const lost = refused(503, 'worker_lost', 'not reached within 50 ms');
    expect(await put('/v1/repos/shop', files(FILES))).toEqual(lost);
    expect(await ask('DELETE', '/v1/repos/shop')).toEqual(lost);
  });
});

describe('what is indexed', () => {
  test.each([
    ['none', undefined, { stale: false, modes: ['text'], retrievers: ['jaccard', 'bm25'] }],
    ['none', 'context', { stale: true, modes: ['text'], retrievers: ['jaccard', 'bm25'] }],
    ['context', undefined, { stale: false, modes: ['text'], retrievers: ['jaccard', 'bm25'] }],
    [
      withEmbeddings('context'),
      'context',
      { stale: false, modes: ['compressed', 'mixed', 'text'], retrievers: ['jaccard', 'bm25', 'dense', 'fused'] },
    ],
    [withEmbeddings('context'), 'another', { stale: true, modes: ['text'], retrievers: ['jaccard', 'bm25'] }],
  ])('an index of %s says what it can serve with a model of %s', async (fingerprint, contextFingerprint, says) => {
    const { store, client } = await fakeIndexer();
    const writer = await store.lock('r', 30_000);
    const head = {
      version: '1'.repeat(16),
      fingerprint,
      hidden: 0,
      files: 0,
      chunks: 0,
      languages: {},
      indexedAt: '2026-01-02T03:04:05.678Z',
    };
    await writer.publish({ head, ids: Buffer.alloc(0) });
    const { app } = await fakeGateway({ token: () => 70 }, { store, indexer: client, contextFingerprint });
    const answer = await app.inject({ method: 'GET', url: '/v1/repos/r' });
    expect(answer.json()).toMatchObject({ ...says, soft_per_chunk: 1, file_vectors: 0 });
    const other = { ...head, version: '2'.repeat(16), softPerChunk: 4 as const, fileRows: 3 };
    await writer.publish({ head: other, ids: Buffer.alloc(3 * 32) });
    await writer.release();
    const next = await app.inject({ method: 'GET', url: '/v1/repos/r' });
    expect(next.json()).toMatchObject({ ...says, soft_per_chunk: 4, file_vectors: 3 });
  });

  test('an indexed repository is listed, goes stale with its encoder, and can be removed', async () => {
    const { put, ask, store, gateway } = await start();
    await put('/v1/repos/b', files(FILES));
    await put('/v1/repos/a/x', files({}));
    const writer = await store.lock('old', 30_000);
    const head = {
      version: '1'.repeat(16),
      fingerprint: 'another',
      hidden: 2,
      files: 0,
      chunks: 0,
      languages: {},
      indexedAt: '2026-01-02T03:04:05.678Z',
    };
    await writer.publish({ head, ids: Buffer.alloc(0) });
    await writer.release();
    const { body } = await ask('GET', '/v1/repos');
    expect(body.data.map((repo: { repo: string; stale: boolean }) => [repo.repo, repo.stale])).toEqual([
      ['a/x', false],
      ['b', false],
      ['old', true],
    ]);
    const [, , old] = body.data;
    expect(old).toMatchObject({ modes: ['text'], retrievers: ['jaccard', 'bm25'] });
    expect((await gateway.complete({ prompt: 'a_1', rag: { repo: 'b' } })).rag?.chunks.length).toBeGreaterThan(0);
    expect(await ask('DELETE', '/v1/repos/b')).toMatchObject({
      status: 200,
      body: { object: 'repo.deleted', repo: 'b', deleted: true },
    });
    for (const method of ['GET', 'DELETE'] as const) {
      expect(await ask(method, '/v1/repos/b')).toEqual(refused(404, 'repo_not_found', 'no index of b'));
    }
    expect(await gateway.complete({ prompt: 'a_1', rag: { repo: 'b' } })).toMatchObject({
      status: 404,
      error: { code: 'repo_not_found', param: 'rag.repo' },
    });
    expect((await ask('GET', '/v1/repos')).body.data).toHaveLength(2);
  });
});

describe('API keys', () => {
  async function keysOf(entries: { key: string; tenant: string; repos: string[] }[]) {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-keys-'));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    const file = join(dir, 'keys.json');
    const hashed = entries.map(({ key, ...rest }) => ({
      key_sha256: createHash('sha256').update(key).digest('hex'),
      ...rest,
    }));
    await writeFile(file, JSON.stringify(hashed));
    return loadApiKeys(file);
  }
  const bearer = (key: string) => ({ authorization: `Bearer ${key}` });

  test('an API key opens its own tenant and no other, by whatever name', async () => {
    const keys = await keysOf([
      { key: 'acme-key', tenant: 'acme', repos: ['*'] },
      { key: 'acme-docs', tenant: 'acme', repos: ['docs'] },
      { key: 'umbrella-key', tenant: 'umbrella', repos: ['*'] },
      { key: 'default-key', tenant: 'default', repos: ['*'] },
    ]);
    const { put, ask, gateway } = await start({ keys });
    expect((await put('/v1/repos/shop', files(FILES), bearer('acme-key'))).status).toBe(200);
    const secret = await put('/v1/repos/shop', files({ 'secret.py': 'a_1 = 2' }), bearer('umbrella-key'));
    expect((await ask('GET', '/v1/repos/shop', undefined, bearer('umbrella-key'))).body.version).toBe(
      secret.body.version,
    );
    const complete = async (key: string, repo: string) => {
      const payload = { prompt: 'a_1 = ', rag: { repo, mode: 'text' } };
      const answer = await gateway.app.inject({
        method: 'POST',
        url: '/v1/completions',
        payload,
        headers: bearer(key),
      });
      return { status: answer.statusCode, body: answer.json() };
    };
    const paths = async (key: string) => {
      const { body } = await complete(key, 'shop');
      return new Set(body.rag.chunks.map((chunk: { path: string }) => chunk.path));
    };
    expect(await paths('acme-key')).not.toContain('secret.py');
    expect(await paths('umbrella-key')).toEqual(new Set(['secret.py']));
    // Refused: the name of another tenant's repository, a key without the right to it, and a name in the form of the
    // store's own keys.
    const missing = await complete('acme-docs', 'docs');
    for (const [key, repo] of [
      ['acme-docs', 'shop'],
      ['default-key', 'shop'],
    ] as const) {
      const answer = await complete(key, repo);
      expect(answer).toEqual(refused(404, 'repo_not_found'));
      expect(answer.body.error.message).toContain('there is no index of shop.');
      expect(answer.body.error.message.replaceAll('shop', 'docs')).toBe(missing.body.error.message);
      for (const method of ['GET', 'PUT', 'DELETE'] as const) {
        const body = method === 'PUT' && key === 'acme-docs' ? files(FILES) : undefined;
        if (method === 'PUT' && !body) continue;
        expect(await ask(method, `/v1/repos/${repo}`, body, bearer(key))).toEqual(refused(404, 'repo_not_found'));
      }
    }
    for (const repo of ['acme:shop', 'umbrella:shop', 'acme%3Ashop']) {
      expect((await complete('default-key', repo)).status).toBe(400);
      expect((await ask('GET', `/v1/repos/${repo}`, undefined, bearer('default-key'))).status).toBe(400);
    }
    expect((await ask('GET', '/v1/repos', undefined, bearer('acme-docs'))).body.data).toEqual([]);
    expect((await ask('GET', '/v1/repos', undefined, bearer('acme-key'))).body.data).toMatchObject([{ repo: 'shop' }]);
  });

  test('API keys are compared byte for byte', async () => {
    const keys = await keysOf([{ key: 'schlüssel', tenant: 'acme', repos: ['*'] }]);
    const asNodeReadsIt = Buffer.from('schlüssel').toString('latin1');
    expect(keys.identify(asNodeReadsIt).tenant).toBe('acme');
    expect(() => keys.identify('schlussel')).toThrowError(expect.objectContaining({ code: 'invalid_api_key' }));
  });

  test('where there are API keys every route needs one, except the probes', async () => {
    const { gateway } = await start({ keys: await keysOf([{ key: 'k', tenant: 't', repos: ['*'] }]) });
    const get = (url: string, headers: Record<string, string> = {}) => gateway.app.inject({ url, headers });
    for (const headers of [{}, bearer('other'), { authorization: 'Basic aw==' }, { authorization: 'Bearer' }]) {
      for (const url of ['/v1/models', '/v1/repos', '/%76%31/models', '/v1/repos/shop', '//v1/models']) {
        const answer = await get(url, headers as Record<string, string>);
        expect([401, 404]).toContain(answer.statusCode);
        expect(answer.json().error.code).toMatch(
          url.startsWith('/v1') ? /^invalid_api_key$/ : /invalid_api_key|not_found/,
        );
      }
      const answer = await gateway.app.inject({
        method: 'POST',
        url: '/v1/completions',
        payload: { prompt: 'x' },
        headers,
      });
      expect(answer.statusCode).toBe(401);
      expect(answer.json().error).toMatchObject({ type: 'invalid_request_error', code: 'invalid_api_key' });
    }
    expect((await get('/v1/models', bearer('k'))).statusCode).toBe(200);
    expect((await get('/v1/models', { authorization: 'bearer k' })).statusCode).toBe(200);
    await gateway.readiness.check();
    for (const url of ['/livez', '/readyz']) expect((await get(url)).statusCode).toBe(200);
  });

  test.each([
    ['no file', undefined],
    ['no JSON', '{'],
    ['no list', '{}'],
    ['a key in the clear', '[{"key":"x","tenant":"t","repos":["*"]}]'],
    ['a short hash', '[{"key_sha256":"ab","tenant":"t","repos":["*"]}]'],
    ['no tenant', `[{"key_sha256":"${'a'.repeat(64)}","tenant":"a:b","repos":["*"]}]`],
    ['no repository', `[{"key_sha256":"${'a'.repeat(64)}","tenant":"t","repos":["../x"]}]`],
  ])('a file of API keys with %s is refused', async (_, text) => {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-keys-'));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    const file = join(dir, 'keys.json');
    if (text !== undefined) await writeFile(file, text);
    await expect(loadApiKeys(file)).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringContaining(file),
    });
  });
});

describe('a list of 5,000 repositories in a slow store', () => {
  /** Heads of tenant `fat` are not answered until the gate opens, and ten times in a row too late then. */
  async function slow() {
    const memory = new MemoryStore();
    for (let i = 0; i < 5_000; i++) memory.publish(`fat:${i}`, []);
    memory.publish('thin:r', []);
    memory.repositories = async () => [...memory.heads.keys()].filter((key) => key.startsWith('fat:'));
    const answers = gate();
    memory.delay = async ({ repo }) => {
      if (!repo.startsWith('fat:')) return;
      const isSlow = memory.asked.length <= 160;
      await answers.opened;
      if (isSlow) await sleep(3);
    };
    const store = withBreaker(memory, { budgetMs: 1 });
    const identify = (tenant = '') => ({ tenant, limits: {}, access: 'admin' as const, mayUse: () => true });
    const gateway = await fakeGateway({ token: () => 70 }, { store, keys: { tenants: ['fat', 'thin'], identify } });
    onTestFinished(() => gateway.app.close());
    const ask = (url: string, tenant: string) =>
      gateway.app.inject({ method: 'GET', url, headers: { authorization: `Bearer ${tenant}` } });
    const isOpen = async () => (await metrics.storeCircuitOpen.get()).values[0]?.value === 1;
    return { gateway, memory, answers, ask, isOpen };
  }

  test('a list reads a few heads at a time, one list after the other, and shuts no other tenant out', async () => {
    const { memory, answers, ask, isOpen } = await slow();
    const lists = [ask('/v1/repos', 'fat'), ask('/v1/repos', 'fat')];
    await vi.waitUntil(() => memory.asked.length > 0);
    await sleep(20); // by then the breaker has counted whatever it counts
    expect([memory.asked.length, await isOpen()]).toEqual([16, false]);
    expect((await ask('/v1/repos/r', 'thin')).statusCode).toBe(200);
    answers.open();
    for (const list of await Promise.all(lists)) expect(list.json().data).toHaveLength(5_000);
    expect(await isOpen()).toBe(false);
  });

  test('a list whose client hangs up ends', async () => {
    const { gateway, memory, answers } = await slow();
    const url = await gateway.app.listen({ host: '127.0.0.1', port: 0 });
    const closed = new Promise((resolve) => gateway.app.server.once('connection', (it) => it.once('close', resolve)));
    const leaving = new AbortController();
    const headers = { authorization: 'Bearer fat' };
    const list = fetch(`${url}/v1/repos`, { headers, signal: leaving.signal }).catch(() => 'gone');
    await vi.waitUntil(() => memory.asked.length > 0);
    leaving.abort();
    await closed;
    await new Promise((resolve) => setImmediate(resolve));
    answers.open();
    await gateway.inflight.drain(60_000);
    expect([await list, memory.asked.length]).toEqual(['gone', 16]);
  });
});

test('an index remembers the remote URL of its checkout, without a password, until it is told another', async () => {
  const { put, ask, store } = await start();
  const remote = async () => (await ask('GET', '/v1/repos/shop')).body.remote;
  await put('/v1/repos/shop', files(FILES));
  expect(await remote()).toBeNull();
  const told = (url: string) => ({ 'x-llavacode-remote-url': url });
  const same = await put('/v1/repos/shop', files(FILES), told('https://me:secret@example.com/acme/shop.git'));
  expect(same.body).toMatchObject({ changed: false });
  expect(await remote()).toBe('example.com/acme/shop');
  expect(JSON.stringify(await store.head('shop'))).not.toContain('secret');
  await put('/v1/repos/shop', { changes: [{ path: 'a.py', deleted: true }] });
  expect(await remote()).toBe('example.com/acme/shop');
  await put('/v1/repos/shop', files({ 'c.py': 'c = 1' }), told('git@example.com:acme/moved'));
  expect(await remote()).toBe('example.com/acme/moved');
});
