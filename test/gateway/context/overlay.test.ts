import fc from 'fast-check';
import { expect, test, vi } from 'vitest';
import { MAX_OVERLAY_CHARACTERS, type OverlayOptions, Overlays } from '../../../services/gateway/context/overlay.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { createRetrieval } from '../../../services/lib/rag/search/retrieval.ts';
import { encodeHalves } from '../../../services/lib/rag/store/vector-codec.ts';
import { bearer, keyEntry, keysOf } from '../../support/api-keys.ts';
import { gate } from '../../support/fake-engine.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';
import { fakeIndexer } from '../../support/fake-indexer.ts';
import { keepingLog } from '../../support/keeping-log.ts';
import { MemoryStore } from '../../support/memory-store.ts';

const { signal } = new AbortController();
const code = (name: string, lines = 10) =>
  Array.from({ length: lines }, (_, i) => `${name}_${i} = total + 1`).join('\n');

/** An indexer that remembers what it encoded. A vector is [length of the text, 1]. */
function encoding(change: { fingerprint?: string; before?: () => Promise<unknown> } = {}) {
  const texts: string[] = [];
  return {
    texts,
    encode: async ({ chunks = [] }: { chunks?: readonly { text?: string }[] }) => {
      await change.before?.();
      texts.push(...chunks.map(({ text = '' }) => text));
      const vectors = Float32Array.from(chunks.flatMap(({ text = '' }) => [text.length, 1]));
      return { fingerprint: change.fingerprint ?? 'context', vectors: encodeHalves(vectors) };
    },
  };
}

const overlaysOf = (options: Partial<OverlayOptions> = {}, lines: Record<string, unknown>[] = []) =>
  new Overlays({
    indexer: encoding(),
    contextFingerprint: 'context',
    hidden: 2,
    overlayBudgetMs: 60_000,
    log: keepingLog(lines),
    ...options,
  });

async function vectors(overlays: Overlays, tenant: string, ...texts: string[]) {
  const overlay = await overlays.of(
    tenant,
    texts.map((text, i) => ({ path: `${i}.py`, text })),
    signal,
  );
  return overlays.vectorsOf(tenant, overlay, overlay.chunks, signal);
}

test('a chunk of an overlay is encoded once, and a file that changes costs the chunks that changed', async () => {
  const indexer = encoding();
  const overlays = overlaysOf({ indexer });
  expect(await vectors(overlays, 'a', code('x', 15))).toEqual(
    [code('x', 10), code('x', 15)].map(() => expect.anything()),
  );
  const first = indexer.texts.length;
  expect(first).toBe(2);
  await vectors(overlays, 'a', code('x', 15));
  expect(indexer.texts).toHaveLength(first);
  await vectors(overlays, 'a', `${code('x', 15)} + 2`);
  expect(indexer.texts).toHaveLength(first + 1);
});

test('a chunk of an overlay has as many soft tokens as a chunk of an index', async () => {
  const asked = [code('x'), code('y', 9)];
  const vectorsOfAll = Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8);
  const indexer = { encode: async () => ({ fingerprint: 'context', vectors: encodeHalves(vectorsOfAll) }) };
  expect(await vectors(overlaysOf({ indexer, softPerChunk: 2 }), 'a', ...asked)).toEqual([
    Float32Array.of(1, 2, 3, 4),
    Float32Array.of(5, 6, 7, 8),
  ]);
  // One vector for each chunk is an answer of another model.
  expect(await vectors(overlaysOf({ indexer: encoding(), softPerChunk: 2 }), 'a', ...asked)).toEqual([
    undefined,
    undefined,
  ]);
});

test('a tenant finds nothing that another tenant has sent', async () => {
  const indexer = encoding();
  const overlays = overlaysOf({ indexer });
  await vectors(overlays, 'a', code('x'));
  await vectors(overlays, 'b', code('x'));
  expect(indexer.texts).toEqual([code('x'), code('x')]);
});

test('two requests that need one chunk at once have it encoded once', async () => {
  const held = gate();
  const indexer = encoding({ before: () => held.opened });
  const overlays = overlaysOf({ indexer });
  const both = [vectors(overlays, 'a', code('x')), vectors(overlays, 'a', code('x'))];
  held.open();
  for (const each of await Promise.all(both)) expect(each[0]).toEqual(Float32Array.of(code('x').length, 1));
  expect(indexer.texts).toHaveLength(1);
});

test('a chunk that was not encoded in time stays text for as long as the overlay is the same', async () => {
  const held = gate();
  const indexer = encoding({ before: () => held.opened });
  const overlays = overlaysOf({ indexer, overlayBudgetMs: 1 });
  expect(await vectors(overlays, 'a', code('x'))).toEqual([undefined]);
  held.open();
  await vi.waitUntil(() => indexer.texts.length === 1);
  expect(await vectors(overlays, 'a', code('x'))).toEqual([undefined]);
  const [kept] = await vectors(overlays, 'a', code('x'), code('y'));
  expect(kept).toEqual(Float32Array.of(code('x').length, 1));
});

test.each([
  ['there is no indexer', { indexer: undefined }],
  ['the model has no encoder', { contextFingerprint: undefined }],
  ['the indexer has another encoder', { indexer: encoding({ fingerprint: 'another' }) }],
  ['the vectors have another size', { hidden: 3 }],
  [
    'the indexer fails',
    {
      indexer: encoding({
        before: async () => {
          throw new ServingError('saturated', 'busy');
        },
      }),
    },
  ],
])('chunks of an overlay stand as text where %s', async (_, options) => {
  expect(await vectors(overlaysOf(options), 'a', code('x'))).toEqual([undefined]);
});

test('a request that is given up does not wait for vectors', async () => {
  const overlays = overlaysOf({ indexer: encoding({ before: () => new Promise(() => {}) }) });
  const overlay = await overlays.of('a', [{ path: 'a.py', text: code('x') }], signal);
  const gone = new AbortController();
  const waiting = overlays.vectorsOf('a', overlay, overlay.chunks, gone.signal);
  gone.abort(new Error('gone'));
  await expect(waiting).rejects.toThrow('gone');
});

test('one tenant has at most 256 chunks on their way, and the chunks of another go on', async () => {
  const held = gate();
  const indexer = encoding({ before: () => held.opened });
  const overlays = overlaysOf({ indexer, overlayBudgetMs: 1 });
  await vectors(overlays, 'a', code('x', 5 * 300));
  await vectors(overlays, 'b', code('y'));
  held.open();
  await vi.waitUntil(() => indexer.texts.length >= 257);
  expect(indexer.texts.filter((text) => text.startsWith('x'))).toHaveLength(256);
  expect(indexer.texts.filter((text) => text.startsWith('y'))).toHaveLength(1);
});

test('an overlay is cut where it is too large, and tells which files are whole', async () => {
  const overlays = overlaysOf();
  const large = { path: 'b.py', text: 'x'.repeat(MAX_OVERLAY_CHARACTERS) };
  const overlay = await overlays.of('a', [{ path: 'a.py', text: code('x'), isPart: true }, large], signal);
  expect(overlay).toMatchObject({ cut: true, replaced: [] });
  expect(overlay.chunks.map(({ path }) => path)).toEqual(['a.py']);
  expect(await overlays.of('a', [{ path: 'a.py', text: code('x') }], signal)).toMatchObject({ replaced: ['a.py'] });
});

const SHOP = { 'a.py': code('stale'), 'b.py': code('b') };

async function start(options: Parameters<typeof fakeGateway>[1] = {}) {
  const indexer = await fakeIndexer();
  const store = new MemoryStore();
  for (const repo of ['shop', 'acme:shop']) store.publishFiles(repo, SHOP);
  const retrieval = createRetrieval(store, { queryLines: 10 });
  const gateway = await fakeGateway(
    { token: spelling('ok'), capacity: 4096 },
    { store, retrieval, indexer: indexer.client, overlayBudgetMs: 60_000, ...options },
  );
  return { ...gateway, indexer };
}
const ASKED = { prompt: 'total = stale_1 + fresh_1', suffix: '', max_tokens: 1 };
const pathsOf = (rag: { chunks: object[] } | undefined) =>
  rag!.chunks.map((chunk) => {
    const { path, overlay } = chunk as { path: string; overlay?: string };
    return overlay === undefined ? path : `${path} ${overlay}`;
  });

test('files of a request replace what is indexed of them, and their chunks become soft tokens', async () => {
  const { complete, workers, indexer } = await start();
  const rag = { repo: 'shop', files: [{ path: 'a.py', text: code('fresh') }] };
  const answer = await complete({ ...ASKED, rag });
  expect(pathsOf(answer.rag)).toEqual(['a.py soft', 'b.py']);
  expect(workers.prefills[0]!.tokenIds!.slice(0, 3)).toEqual([
    idOf('<|fim_pad|>'),
    idOf('<|fim_pad|>'),
    idOf('<|fim_prefix|>'),
  ]);
  expect(indexer.encoder.texts).toEqual([code('fresh')]);
  const edited = await complete({ ...ASKED, rag: { ...rag, path: 'a.py' } });
  expect(pathsOf(edited.rag)).toEqual(['b.py']); // the file at the cursor stands in the prompt anyway
});

test.each([
  ['/v1/fim/completions', { prompt: ASKED.prompt, max_tokens: 1 }, ['a.py soft']],
  ['/completion', { prompt: ASKED.prompt, n_predict: 1 }, ['a.py soft']],
  ['/api/generate', { model: 'tiny', prompt: ASKED.prompt, stream: false, options: { num_predict: 1 } }, ['a.py soft']],
  [
    '/infill',
    { input_prefix: ASKED.prompt, n_predict: 1, input_extra: [{ filename: 'c.py', text: code('stale') }] },
    ['a.py soft', 'c.py soft'],
  ],
])('%s takes files in rag as well', async (url, body, paths) => {
  const { app, indexer } = await start();
  const files = [{ path: 'a.py', text: code('fresh') }];
  const answer = await app.inject({ method: 'POST', url, payload: { ...body, rag: { files } } });
  expect([answer.statusCode, answer.headers['x-llavacode-rag']]).toEqual([200, `compressed; chunks=${paths.length}`]);
  expect(indexer.encoder.texts).toHaveLength(paths.length);
});

/** Ways to write a file's name in an editor: each makes a spelling of the parts of its path. */
const written = fc
  .record({
    root: fc.constantFrom(
      '',
      '/',
      './',
      '.\\',
      'C:\\',
      'c:/',
      'file:///',
      'FILE:/',
      'file://localhost/',
      'file:///C:/',
    ),
    separators: fc.array(fc.constantFrom('/', '\\', '//', '/./', '\\.\\', '/gone/../'), { minLength: 2, maxLength: 2 }),
    isComposed: fc.boolean(),
  })
  .map(({ root, separators, isComposed }) => (parts: readonly string[]) => {
    const isUrl = /^file:/i.test(root);
    const normal = parts.map((part) => part.normalize(isComposed ? 'NFC' : 'NFD'));
    // In a URL a backslash is a slash only before it is encoded.
    const named = isUrl ? normal.map(encodeURIComponent) : normal;
    return root + named.reduce((path, part, i) => `${path}${separators[(i - 1) % 2]}${part}`);
  });
const part = fc.constantFrom('src', 'my app', 'caf\u00e9', 'x', 'A#1', '100%', 'übung', 'main.py');

test('a file is the same however an editor writes its name', async () => {
  const { app, complete } = await start();
  const paths = fc.array(part, { minLength: 1, maxLength: 4 });
  const property = fc.asyncProperty(paths, written, written, written, async (parts, one, other, third) => {
    const here = parts.join('/') === 'src' ? ['main.py'] : parts; // `src` would be the folder of the other file
    const input_extra = [
      { filename: one(here), text: code('fresh') },
      { filename: other(['src', 'elsewhere.py']), text: code('stale') },
    ];
    const body = { input_prefix: ASKED.prompt, n_predict: 1, input_extra, rag: { path: third(here) } };
    const answer = await app.inject({ method: 'POST', url: '/infill', payload: body });
    // The file at the cursor stands in the prompt anyway.
    expect([answer.headers['x-llavacode-rag'], body]).toEqual(['compressed; chunks=1', body]);
    // What is indexed of a.py, as the client has it, is older.
    const rag = { repo: 'shop', files: [{ path: one(['a.py']), text: code('fresh') }] };
    expect(pathsOf((await complete({ ...ASKED, rag })).rag)).toEqual(['a.py soft', 'b.py']);
    expect(pathsOf((await complete({ ...ASKED, rag: { ...rag, path: other(['a.py']) } })).rag)).toEqual(['b.py']);
  });
  await fc.assert(property, { numRuns: 100 });
}, 60_000);

test('files that come ahead of the text to be completed are encoded for it', async () => {
  const { app, indexer, workers } = await start();
  const input_extra = [{ filename: 'c.py', text: code('third') }];
  const post = (body: object) => app.inject({ method: 'POST', url: '/infill', payload: { input_extra, ...body } });
  expect((await post({ n_predict: 0 })).headers['x-llavacode-rag']).toBe('compressed; chunks=0');
  await vi.waitUntil(() => indexer.encoder.texts.length === 1);
  await post({ n_predict: 1, input_prefix: 'total = third_1 + third_2' });
  expect(workers.prefills[1]!.soft!.positions).toEqual([0]);
  expect(indexer.encoder.texts).toEqual([code('third')]);
});

test('files of a request are context by themselves, without a repository and where it cannot be searched', async () => {
  const { complete } = await start();
  const files = [{ path: 'a.py', text: code('fresh') }];
  const alone = await complete({ ...ASKED, rag: { files } });
  expect(pathsOf(alone.rag)).toEqual(['a.py soft']);
  expect(alone.rag).toMatchObject({ index_version: null });
  expect(alone.rag).not.toHaveProperty('degraded');
  const unknown = await complete({ ...ASKED, model: 'tiny@gone', rag: { files } });
  expect(unknown.rag).toMatchObject({ degraded: 'repo_not_found', chunks: [{ path: 'a.py' }] });
});

test('what is not encoded in time stands behind the soft tokens as text, within the text budget', async () => {
  const { complete, workers } = await start({ indexer: undefined });
  const rag = { repo: 'shop', files: [{ path: 'a.py', text: code('fresh') }] };
  const answer = await complete({ ...ASKED, rag });
  expect(pathsOf(answer.rag)).toEqual(['b.py', 'a.py text']);
  const text = tokenizer.decode(workers.prefills[0]!.tokenIds!);
  expect(text.startsWith(`<|fim_pad|><|repo_name|>shop\n<|file_sep|>a.py\n${code('fresh')}`)).toBe(true);
  expect(workers.prefills[0]!.soft!.positions).toEqual([0]);
  const cut = await complete({ ...ASKED, rag: { ...rag, max_text_tokens: 20 } });
  expect(workers.prefills[1]!.tokenIds!.length).toBeLessThan(workers.prefills[0]!.tokenIds!.length);
  expect(pathsOf(cut.rag)).toEqual(['b.py', 'a.py text']);
  const whole = await complete({ ...ASKED, rag: { ...rag, mode: 'text' } });
  expect(pathsOf(whole.rag).sort()).toEqual(['a.py text', 'b.py']);
});

test('the same files in the same order give the same prompt, whether or not encoding has caught up', async () => {
  const { complete, workers, indexer } = await start({ overlayBudgetMs: 0 });
  const rag = {
    repo: 'shop',
    files: [
      { path: 'a.py', text: code('fresh') },
      { path: 'c.py', text: code('third') },
    ],
  };
  await complete({ ...ASKED, rag });
  await vi.waitUntil(() => indexer.encoder.texts.length === 2);
  for (const session of [undefined, 's']) await complete({ ...ASKED, rag, ...(session && { session }) });
  const sent = workers.prefills.map(({ tokenIds, soft }) => JSON.stringify([tokenIds, soft]));
  expect(new Set(sent)).toHaveProperty('size', 1);
});

test('in a session the chunks of an overlay stay in their order, until one of them is no longer in it', async () => {
  const { complete, workers } = await start();
  const files = [
    { path: 'c.py', text: code('third') },
    { path: 'a.py', text: code('fresh') },
  ];
  const ask = async (prompt: string, change: object[] = files) => {
    const answer = await complete({ ...ASKED, prompt, session: 's', rag: { repo: 'shop', files: change } });
    return pathsOf(answer.rag);
  };
  const first = await ask('total = third_1 + third_2');
  expect(await ask('total = fresh_1 + fresh_2')).toEqual(first);
  expect(JSON.stringify(workers.prefills[1]!.soft)).toBe(JSON.stringify(workers.prefills[0]!.soft));
  const changed = await ask('total = fresh_1 + fresh_2', [{ path: 'c.py', text: code('other') }, files[1]!]);
  expect(changed[0]).toBe('a.py soft');
  // What was found in the index is not current any more when the client sends its file.
  const sent = await ask('total = fresh_1', [{ path: 'b.py', text: code('third') }, files[1]!]);
  expect(sent).not.toContain('b.py');
});

test('tenants never share an overlay: it is encoded for each, and stands in no prompt of another', async () => {
  const keys = await keysOf([keyEntry('a', 'default'), keyEntry('b', 'acme')]);
  const { app, indexer, workers } = await start({ keys });
  const ask = async (key: string, rag: object, session = 's') => {
    const payload = { ...ASKED, session, rag: { repo: 'shop', ...rag } };
    const answer = await app.inject({ method: 'POST', url: '/v1/completions', payload, headers: bearer(key) });
    return pathsOf(answer.json().rag);
  };
  const files = [{ path: 'secret.py', text: code('fresh') }];
  expect(await ask('a', { files })).toContain('secret.py soft');
  expect(await ask('b', {})).toEqual(['a.py', 'b.py']);
  expect(indexer.encoder.texts).toHaveLength(1);
  expect(await ask('b', { files }, 's2')).toContain('secret.py soft');
  expect(indexer.encoder.texts).toHaveLength(2);
  expect(new Set(workers.prefills.map(({ cacheSalt }) => cacheSalt))).toHaveProperty('size', 2);
});

test.each([
  ['is not a list', 'a.py'],
  ['holds a file without text', [{ path: 'a.py' }]],
  ['holds a file with another field', [{ path: 'a.py', text: '', more: 1 }]],
  ['holds a path that leads out of the repository', [{ path: '../a.py', text: '' }]],
  ['holds too many files', Array.from({ length: 257 }, () => ({ path: 'a.py', text: '' }))],
])('rag.files is refused if it %s', async (_, files) => {
  const { complete } = await fakeGateway({ token: spelling('ok') });
  const refused = await complete({ ...ASKED, rag: { files } });
  expect(refused).toMatchObject({ status: 400, error: { code: 'invalid_request', param: 'rag.files' } });
});
