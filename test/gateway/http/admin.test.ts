/** The operator page's routes: who gets them, what they tell, and within which bounds. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import type { LiveBody, ReposBody } from '../../../services/gateway/http/admin-answers.ts';
import { loadPage, type PageFiles } from '../../../services/gateway/http/admin-page.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { bearer, keyEntry, keysOf } from '../../support/api-keys.ts';
import { type FakeGatewayOptions, fakeGateway, listeningGateway, spelling } from '../../support/fake-gateway.ts';
import { MemoryStore } from '../../support/memory-store.ts';

const file = (text: string, type: string) => ({ type, bytes: Buffer.from(text) });
const PAGE: PageFiles = new Map([
  ['index.html', file('<!doctype html>', 'text/html; charset=utf-8')],
  ['assets/main-1.js', file('run()', 'text/javascript; charset=utf-8')],
]);
const model = { token: spelling('return 1') };
const gateway = (options: FakeGatewayOptions = {}) => fakeGateway(model, { page: PAGE, ...options });
const SECRET = 'do_not_tell_anybody';

/** The events of a stream that ends by itself. */
const events = (payload: string): LiveBody[] =>
  payload
    .split('\n\n')
    .filter((event) => event.startsWith('data: {'))
    .map((event) => JSON.parse(event.slice('data: '.length)) as LiveBody);

test('without --admin-page there is nothing under /admin', async () => {
  const { app } = await fakeGateway(model);
  const urls = ['/admin', '/admin/', '/admin/assets/main-1.js', '/admin/api/live', '/admin/api/repos'];
  for (const url of [...urls, '/admin/api/left-out?tenant=default&repo=r']) {
    const answer = await app.inject(url);
    expect([answer.statusCode, answer.json().error.code], url).toEqual([404, 'not_found']);
    expect(answer.json().error.message).toContain('--admin-page');
  }
});

test('the page is served to everybody, under a policy that lets it reach nothing but its gateway', async () => {
  const { app } = await gateway({ keys: await keysOf([keyEntry('k', 'acme', { access: 'admin' })]) });
  const moved = await app.inject('/admin');
  expect([moved.statusCode, moved.headers['location']]).toEqual([302, './admin/']);
  for (const [url, text] of [
    ['/admin/', '<!doctype html>'],
    ['/admin/assets/main-1.js', 'run()'],
  ] as const) {
    const { statusCode, payload, headers } = await app.inject(url);
    expect([statusCode, payload]).toEqual([200, text]);
    const policy = String(headers['content-security-policy']).split('; ');
    expect(policy).toEqual(
      expect.arrayContaining(["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"]),
    );
    expect(policy.join()).not.toContain('unsafe');
    expect(headers['x-content-type-options']).toBe('nosniff');
  }
  for (const url of ['/admin/assets/none.js', '/admin/assets/../index.html', '/admin/assets/%2e%2e/index.html']) {
    expect((await app.inject(url)).statusCode, url).toBe(404);
  }
  expect((await app.inject({ method: 'POST', url: '/admin/' })).statusCode).toBe(405);
});

test('the data need a key to which the file gives access admin in so many words', async () => {
  const entries = [
    keyEntry('operator', 'acme', { access: 'admin' }),
    keyEntry('old', 'acme'),
    keyEntry('indexer', 'acme', { access: 'index' }),
  ];
  const { app } = await gateway({ keys: await keysOf(entries), store: new MemoryStore() });
  const asked = async (url: string, headers: Record<string, string>) => {
    const answer = await app.inject({ url, headers });
    return answer.statusCode === 200 ? 200 : answer.json().error.code;
  };
  for (const url of ['/admin/api/live?events=1', '/admin/api/repos']) {
    expect(await asked(url, bearer('operator'))).toBe(200);
    for (const key of ['old', 'indexer']) expect(await asked(url, bearer(key))).toBe('access_denied');
    expect(await asked(url, bearer('nobody'))).toBe('invalid_api_key');
    expect(await asked(url, {})).toBe('invalid_api_key');
  }
});

test('the stream tells workers, queue, hand-overs, and requests with their timelines, and no text', async () => {
  const { app, complete, workers } = await gateway();
  await complete({ prompt: `def ${SECRET}():\n    `, max_tokens: 4, temperature: 0, user: SECRET });
  await app.inject({ method: 'POST', url: '/v1/completions', payload: { prompt: SECRET, model: SECRET } });
  const { payload, headers } = await app.inject('/admin/api/live?events=1');
  expect(headers['content-type']).toContain('text/event-stream');
  const [event, ...more] = events(payload);
  expect(more).toEqual([]);
  expect(event).toMatchObject({
    object: 'admin.live',
    gateway: { model: 'tiny', gateways: 1, rollout: 'none' },
    queue: { prompts: 0, tokens: 0 },
    running: {},
  });
  const [prefill, decode] = [workers.prefill.address, workers.decode.address];
  expect(event!.workers.map(({ role, address, usable }) => [role, address, usable])).toEqual([
    ['prefill', prefill, true],
    ['decode', decode, true],
  ]);
  expect(event!.workers[1]!.slots).toBeGreaterThan(0);
  expect(event!.hand_overs).toMatchObject([{ from: prefill, to: decode, flying: 0, done: 1 }]);
  const [served, refused] = event!.requests;
  expect(served).toMatchObject({
    number: 1,
    route: '/v1/completions',
    status: 200,
    tenant: 'default',
    usage: { completion_tokens: 4 },
    activities: [{ name: 'queue' }, { name: 'prefill', worker: prefill }, { name: 'decode', worker: decode }],
  });
  expect(served!.timeline['first_token']).toBeGreaterThan(0);
  expect(refused).toMatchObject({ status: 404, code: 'model_not_found' });
  expect(payload).not.toContain(SECRET);
});

test('a reader is told each request once, as they end', async () => {
  const { port, complete } = await listeningGateway(model, { page: PAGE });
  const stop = new AbortController();
  const response = await fetch(`http://127.0.0.1:${port}/admin/api/live`, { signal: stop.signal });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  const numbers = async (count: number) => {
    while (events(text.slice(0, text.lastIndexOf('\n\n') + 2)).flatMap(({ requests }) => requests).length < count) {
      text += (await reader.read()).value ?? '';
    }
    return events(text).flatMap(({ requests }) => requests.map(({ number }) => number));
  };
  await complete({ prompt: 'a', max_tokens: 2 });
  expect(await numbers(1)).toEqual([1]);
  await complete({ prompt: 'b', max_tokens: 2 });
  await complete({ prompt: 'c', max_tokens: 2 });
  expect(await numbers(3)).toEqual([1, 2, 3]);
  stop.abort();
});

test('streams end when the gateway drains, are few, and give their places back', async () => {
  const { app, port, draining } = await listeningGateway(model, { page: PAGE });
  const url = `http://127.0.0.1:${port}/admin/api/live`;
  const stop = new AbortController();
  const open = await Promise.all(Array.from({ length: 16 }, () => fetch(url, { signal: stop.signal })));
  expect(open.map(({ status }) => status)).toEqual(Array(16).fill(200));
  const oneMore = await fetch(url);
  expect([oneMore.status, ((await oneMore.json()) as { error: { code: string } }).error.code]).toEqual([
    429,
    'saturated',
  ]);
  stop.abort();
  await vi.waitUntil(async () => (await fetch(`${url}?events=1`)).status === 200, { timeout: 30_000 });
  const last = await fetch(url);
  const rest = last.text();
  draining.abort(new ServingError('draining', 'the gateway is shutting down'));
  expect(events(await rest).length).toBeGreaterThan(0);
  expect((await app.inject('/admin/api/live')).json().error.code).toBe('draining');
});

test('parameters that are wrong are refused by name', async () => {
  const { app } = await gateway({ store: new MemoryStore() });
  const refusal = async (url: string) => (await app.inject(url)).json().error;
  expect(await refusal('/admin/api/live?events=0')).toMatchObject({ code: 'invalid_request', param: 'events' });
  const head = await app.inject({ method: 'HEAD', url: '/admin/api/live' });
  expect([head.statusCode, head.headers['content-type'], head.body]).toEqual([
    200,
    'text/event-stream; charset=utf-8',
    '',
  ]);
  expect(await refusal('/admin/api/repos?page=2')).toMatchObject({ code: 'invalid_request', param: 'page' });
  expect(await refusal('/admin/api/left-out?tenant=default')).toMatchObject({ code: 'invalid_request', param: 'repo' });
  expect(await refusal('/admin/api/left-out?tenant=default&repo=../x')).toMatchObject({ code: 'invalid_request' });
});

test('indexes of all tenants are listed, page by page, with those that cannot be read', async () => {
  const store = new MemoryStore();
  for (let i = 0; i < 120; i++) store.publishFiles(`acme:r${String(i).padStart(3, '0')}`, { 'a.py': 'a = 1\n' });
  store.publishFiles(
    'globex:old',
    { 'b.py': 'b = 1\n' },
    { fingerprint: 'of-another-encoder', languages: { python: 1 } },
  );
  store.heads.set('acme:r001', Buffer.from('not json'));
  const entries = [keyEntry('operator', 'acme', { access: 'admin' }), keyEntry('x', 'globex', { access: 'complete' })];
  const { app } = await gateway({ store, keys: await keysOf(entries) });
  const page = async (after: string): Promise<ReposBody> =>
    (
      await app.inject({ url: `/admin/api/repos?after=${encodeURIComponent(after)}`, headers: bearer('operator') })
    ).json();
  const first = await page('');
  expect([first.data.length, first.next]).toEqual([100, 'acme:r099']);
  expect(first.data[1]).toEqual({
    tenant: 'acme',
    repo: 'r001',
    error: { code: 'store_invalid', message: expect.any(String) },
  });
  const second = await page(first.next!);
  expect([second.data.length, second.next]).toEqual([21, null]);
  expect(second.data.at(-1)).toMatchObject({ tenant: 'globex', repo: 'old', stale: true, languages: { python: 1 } });
  expect(first.data[0]).toMatchObject({ tenant: 'acme', repo: 'r000', stale: false, chunks: 1 });
});

test('why a file is not in an index is told, for repositories that there are', async () => {
  const store = new MemoryStore();
  store.publishFiles('shop', { 'a.py': 'a = 1\n' });
  store.publishFiles('older', { 'a.py': 'a = 1\n' });
  store.leftOuts.set('shop', { counts: { binary: 2 }, files: [['logo.png', 'binary']] });
  const { app } = await gateway({ store });
  const told = async (repo: string) => (await app.inject(`/admin/api/left-out?tenant=default&repo=${repo}`)).json();
  const of = { object: 'admin.left_out', tenant: 'default' };
  const files = [{ path: 'logo.png', reason: 'binary' }];
  expect(await told('shop')).toEqual({ ...of, repo: 'shop', counts: { binary: 2 }, files });
  expect(await told('older')).toEqual({ ...of, repo: 'older', counts: null, files: [] });
  expect((await told('none')).error.code).toBe('repo_not_found');
  const stranger = (await app.inject('/admin/api/left-out?tenant=nobody&repo=shop')).json();
  expect(stranger.error.code).toBe('repo_not_found');
});

test('an open page is one line of the audit log, and not one for every event', async () => {
  const lines: { action: string; detail: object }[] = [];
  const audit = { write: (entry: (typeof lines)[number]) => void lines.push(entry), close: async () => {} };
  const { app } = await gateway({ audit });
  await app.inject('/admin/api/live?events=2');
  await vi.waitUntil(() => lines.length > 0);
  expect(lines).toMatchObject([{ action: 'admin', outcome: 'ok', detail: { route: 'GET /admin/api/live' } }]);
});

test('a gateway that is to serve a page which was not built does not start, and says what to do', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-page-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  await expect(loadPage(join(dir, 'none'))).rejects.toMatchObject({ code: 'config_invalid' });
  await expect(loadPage(dir)).rejects.toThrow(/--admin-page: the operator page is not in .*npm run build/);
  await mkdir(join(dir, 'assets'));
  await writeFile(join(dir, 'index.html'), 'page');
  await writeFile(join(dir, 'assets', 'a.js'), 'code');
  await writeFile(join(dir, 'assets', 'a.js.map'), 'not served');
  expect([...(await loadPage(dir)).keys()].sort()).toEqual(['assets/a.js', 'index.html']);
});
