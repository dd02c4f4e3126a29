/** Prompts in which the best chunks stand as text and the others as soft tokens. */
import { describe, expect, test } from 'vitest';
import { createRetrieval, type Retrieval, type Retrieved } from '../../../services/lib/rag/search/retrieval.ts';
import { type Answer, fakeGateway, spelling, tokenizer } from '../../support/fake-gateway.ts';
import { fakeIndexer } from '../../support/fake-indexer.ts';
import { MemoryStore } from '../../support/memory-store.ts';

const token = spelling('ok');
const SCORES = [0.5, 0.45, 0.2, 0.1];
const found: Retrieved = {
  indexVersion: 'v1',
  retriever: 'jaccard',
  fingerprint: 'context',
  chunks: SCORES.map((score, i) => ({
    id: `${i}`,
    path: `m${i}.py`,
    startLine: 1,
    endLine: 10,
    score,
    text: `def function_${i}(argument):\n    return argument + ${i}\n`,
    vector: Float32Array.of(i, -score),
  })),
};
const always = (answer: Retrieved): Retrieval => ({ retrieve: async () => answer });

/** Asks for one completion, and gives the prompt that it made as well. */
async function start(retrieved = found, options: Parameters<typeof fakeGateway>[1] = {}) {
  const gateway = await fakeGateway({ token, capacity: 4096 }, { retrieval: always(retrieved), ...options });
  const ask = async (rag: object) => {
    const body = { prompt: 'x = function_1(', suffix: ')\n', max_tokens: 1 };
    const answer = await gateway.complete({ ...body, rag: { repo: 'shop', path: 'c.py', ...rag } });
    return { answer, ...promptOf(gateway.workers.prefills.at(-1)!) };
  };
  return { ...gateway, ask };
}

function promptOf({
  tokenIds,
  soft,
}: {
  tokenIds?: number[];
  soft?: { positions?: number[]; vectors?: unknown } | null;
}) {
  const bytes = (soft?.vectors ?? new Uint8Array()) as Uint8Array;
  return {
    ids: tokenIds,
    positions: soft?.positions ?? [],
    vectors: Array.from(new Float32Array(bytes.slice().buffer)),
  };
}

const formsOf = ({ rag }: Answer) =>
  rag!.chunks.map((chunk) => {
    const { path, form, overlay } = chunk as { path: string; form?: string; overlay?: string };
    return [path, form, overlay].filter((word) => word !== undefined).join(' ');
  });

describe('a mixed prompt', () => {
  test('soft tokens of the other chunks stand first, then the best chunks as the text arm has them', async () => {
    const { ask } = await start();
    const { answer, ids, positions, vectors } = await ask({ mode: 'mixed', text_chunks: 2 });
    expect(formsOf(answer)).toEqual(['m2.py soft', 'm3.py soft', 'm0.py text', 'm1.py text']);
    expect(answer.rag).toMatchObject({ mode: 'mixed', index_version: 'v1' });
    expect(positions).toEqual([0, 1]);
    expect(vectors.map((value) => Math.round(100 * value) / 100)).toEqual([2, -0.2, 3, -0.1]);
    const text = tokenizer.decode(ids!.slice(2));
    expect(text.startsWith('<|repo_name|>shop\n<|file_sep|>m0.py\ndef function_0(argument):')).toBe(true);
    expect(text).toContain('<|file_sep|>m1.py\n');
    expect(text).not.toContain('m2.py');
    expect(text).toContain('<|file_sep|>c.py\n<|fim_prefix|>');
    expect(answer.usage).toMatchObject({ prompt_tokens: ids!.length, prompt_tokens_details: { soft_tokens: 2 } });
  });

  test('without text_chunks the chunks that stand out by their scores are text', async () => {
    const { ask, complete } = await start();
    expect(formsOf((await ask({ mode: 'mixed' })).answer)).toEqual([
      'm2.py soft',
      'm3.py soft',
      'm0.py text',
      'm1.py text',
    ]);
    const answer = await complete({ prompt: 'x', rag: { repo: 'shop', mode: 'mixed' }, n: 2, max_tokens: 2 });
    expect(answer.choices).toHaveLength(2);
    expect(answer.headers['x-llavacode-rag']).toBe('mixed; chunks=4');
  });

  test('with no chunk as text it is the compressed prompt, byte for byte', async () => {
    const { ask } = await start();
    const compressed = await ask({ mode: 'compressed' });
    const mixed = await ask({ mode: 'mixed', text_chunks: 0 });
    expect([mixed.ids, mixed.positions, mixed.vectors]).toEqual([
      compressed.ids,
      compressed.positions,
      compressed.vectors,
    ]);
    expect(compressed.vectors).toHaveLength(8);
  });

  test('with all chunks as text it is the prompt of context as text', async () => {
    const { ask } = await start();
    const text = await ask({ mode: 'text' });
    for (const text_chunks of [4, 100]) {
      const mixed = await ask({ mode: 'mixed', text_chunks });
      expect([mixed.ids, mixed.positions, mixed.vectors]).toEqual([text.ids, [], []]);
      expect(formsOf(mixed.answer)).toEqual(['m0.py text', 'm1.py text', 'm2.py text', 'm3.py text']);
    }
  });

  test('a chunk that has no place within max_text_tokens stands as a soft token, before those that are worse', async () => {
    const { ask } = await start();
    const { answer, vectors } = await ask({ mode: 'mixed', text_chunks: 3, max_text_tokens: 16 });
    expect(formsOf(answer)).toEqual(['m1.py soft', 'm2.py soft', 'm3.py soft', 'm0.py text']);
    expect(vectors.filter((_, i) => i % 2 === 0)).toEqual([1, 2, 3]);
    expect(answer.rag!.degraded).toBeUndefined();
    const none = await ask({ mode: 'mixed', text_chunks: 3, max_text_tokens: 1 });
    const compressed = await ask({ mode: 'compressed' });
    expect([none.ids, none.vectors]).toEqual([compressed.ids, compressed.vectors]);
    expect(formsOf(none.answer)).toEqual(['m0.py soft', 'm1.py soft', 'm2.py soft', 'm3.py soft']);
  });

  test('beside a long prompt text gives way first, then the worst soft tokens', async () => {
    const room = 256;
    const { complete } = await fakeGateway({ token, capacity: room }, { retrieval: always(found) });
    const ask = (promptTokens: number) =>
      complete({
        prompt: Array<number>(promptTokens).fill(70),
        max_tokens: 8,
        rag: { repo: 'shop', mode: 'mixed', text_chunks: 1 },
      });
    expect(formsOf(await ask(100))).toEqual(['m1.py soft', 'm2.py soft', 'm3.py soft', 'm0.py text']);
    expect(formsOf(await ask(room - 8 - 4))).toEqual(['m0.py soft', 'm1.py soft', 'm2.py soft', 'm3.py soft']);
    const tight = await ask(room - 8 - 2);
    expect(formsOf(tight)).toEqual(['m0.py soft', 'm1.py soft']);
    expect(tight.rag!.degraded).toBe('no_room');
  });

  test('where vectors are of another encoder, the best chunks stand as text and the others are left out', async () => {
    const { ask } = await start({ ...found, fingerprint: 'of another encoder' });
    const { answer, positions } = await ask({ mode: 'mixed', text_chunks: 2, max_text_tokens: 16 });
    expect(formsOf(answer)).toEqual(['m0.py text']);
    expect([answer.rag!.degraded, positions]).toEqual(['stale_index', []]);
  });

  test('a model without a projector gets all of it as text, as a compressed prompt does', async () => {
    const { ask } = await start(found, { contextFingerprint: undefined });
    const [mixed, text] = [await ask({ mode: 'mixed', text_chunks: 1 }), await ask({ mode: 'text' })];
    expect([mixed.answer.rag!.mode, mixed.ids]).toEqual(['text', text.ids]);
  });

  test('text_chunks outside 0 to 100 is refused', async () => {
    const { complete } = await start();
    for (const text_chunks of [-1, 101, 1.5]) {
      const answer = await complete({ prompt: 'x', rag: { repo: 'shop', mode: 'mixed', text_chunks } });
      expect(answer).toMatchObject({ status: 400, error: { param: 'rag.text_chunks' } });
    }
  });
});

/** A file of one chunk whose identifiers begin with `word`. */
const code = (word: string) => `def ${word}_total(${word}_cart):\n    return ${word}_cart.total_1\n`;

describe('files of a request in a mixed prompt', () => {
  const ASKED = { prompt: 'total = fresh_total(fresh_cart) + stale_total', suffix: '', max_tokens: 1 };
  const files = [{ path: 'a.py', text: code('fresh') }];

  async function withFiles(options: Parameters<typeof fakeGateway>[1] = {}) {
    const indexer = await fakeIndexer();
    const store = new MemoryStore();
    store.publishFiles('shop', { 'a.py': code('old'), 'b.py': code('stale') });
    const retrieval = createRetrieval(store, { queryLines: 10 });
    return fakeGateway(
      { token, capacity: 4096 },
      { store, retrieval, indexer: indexer.client, overlayBudgetMs: 60_000, ...options },
    );
  }

  test('they take their places by their scores, as text or as soft tokens', async () => {
    const { complete } = await withFiles();
    const one = await complete({ ...ASKED, rag: { repo: 'shop', files, mode: 'mixed', text_chunks: 1 } });
    expect(formsOf(one)).toEqual(['b.py soft', 'a.py text text']);
    const none = await complete({ ...ASKED, rag: { repo: 'shop', files, mode: 'mixed', text_chunks: 0 } });
    expect(formsOf(none)).toEqual(['a.py soft soft', 'b.py soft']);
  });

  test('one that is not encoded in time stands as text behind the best', async () => {
    const { complete } = await withFiles({ indexer: undefined });
    const none = await complete({ ...ASKED, rag: { repo: 'shop', files, mode: 'mixed', text_chunks: 0 } });
    expect(formsOf(none)).toEqual(['b.py soft', 'a.py text text']);
  });

  test.each([
    ['/v1/fim/completions', { prompt: ASKED.prompt, max_tokens: 1 }],
    ['/completion', { prompt: ASKED.prompt, n_predict: 1 }],
    ['/api/generate', { model: 'tiny', prompt: ASKED.prompt, stream: false, options: { num_predict: 1 } }],
    ['/infill', { input_prefix: ASKED.prompt, n_predict: 1 }],
  ])('%s takes the mode as well', async (url, body) => {
    const { app, workers } = await withFiles();
    const rag = { repo: 'shop', files, mode: 'mixed', text_chunks: 1 };
    const answer = await app.inject({ method: 'POST', url, payload: { ...body, rag } });
    expect([answer.statusCode, answer.headers['x-llavacode-rag']]).toEqual([200, 'mixed; chunks=2']);
    expect(promptOf(workers.prefills[0]!).positions).toEqual([0]);
  });
});

test('in a session the chunks of a mixed prompt keep their places and forms from one keystroke to the next', async () => {
  let answer = found;
  const retrieval = { retrieve: async () => answer };
  const { complete, workers } = await fakeGateway({ token, capacity: 4096 }, { retrieval });
  const ask = (prompt: string) =>
    complete({ prompt, max_tokens: 1, session: 's', rag: { repo: 'shop', mode: 'mixed' } });
  const before = await ask('x');
  answer = { ...found, chunks: found.chunks.map((chunk, i) => ({ ...chunk, score: 0.9 - i / 100 })) };
  const after = await ask('xy');
  expect(after.rag).toEqual(before.rag);
  const [first, second] = workers.prefills.map(promptOf);
  expect(second!.ids!.slice(0, first!.ids!.length - 1)).toEqual(first!.ids!.slice(0, -1));
  expect(second!.vectors).toEqual(first!.vectors);
});
