import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import {
  createRetrieval,
  type Retrieval,
  type RetrievalQuery,
  type Retrieved,
} from '../../../services/lib/rag/search/retrieval.ts';
import { NO_VECTORS } from '../../../services/lib/rag/store/row.ts';
import type { IndexHead, Store } from '../../../services/lib/rag/store/store.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';

const token = spelling('ok');
const chunk = (path: string, score: number) => ({
  id: path,
  path,
  startLine: 1,
  endLine: 10,
  score,
  text: `# ${path}`,
  vector: Float32Array.of(score, -score),
});
const found: Retrieved = {
  indexVersion: 'v1',
  retriever: 'jaccard',
  fingerprint: 'context',
  chunks: [chunk('a.py', 0.5), chunk('b.py', 0.25)],
};

const HEAD: IndexHead = {
  version: '1'.repeat(16),
  fingerprint: 'context',
  hidden: 2,
  files: 0,
  chunks: 0,
  languages: {},
  indexedAt: '2026-01-02T03:04:05.678Z',
};

/** Answers every query alike, and remembers them. */
function answering(answer: Retrieved | ServingError): Retrieval & { queries: RetrievalQuery[] } {
  const queries: RetrievalQuery[] = [];
  return {
    queries,
    retrieve: async (query) => {
      queries.push(query);
      if (answer instanceof ServingError) throw answer;
      return answer;
    },
  };
}

describe('compressed context', () => {
  test('compressed context stands in front as soft tokens, best first, and is reported', async () => {
    const retrieval = answering(found);
    const { complete, workers } = await fakeGateway({ token }, { retrieval });
    const rag = { repo: 'shop', path: 'c.py', top_k: 3 };
    const answer = await complete({ prompt: 'before', suffix: 'after', rag });
    expect(retrieval.queries).toEqual([
      { repo: 'shop', path: 'c.py', before: 'before', after: 'after', topK: 3, retriever: undefined, part: 'vectors' },
    ]);
    expect(answer.rag).toEqual({
      mode: 'compressed',
      chunks: [
        { path: 'a.py', start_line: 1, end_line: 10, score: 0.5 },
        { path: 'b.py', start_line: 1, end_line: 10, score: 0.25 },
      ],
      index_version: 'v1',
    });
    const { tokenIds, soft } = workers.prefills[0]!;
    expect(tokenIds!.slice(0, 3)).toEqual([idOf('<|fim_pad|>'), idOf('<|fim_pad|>'), idOf('<|fim_prefix|>')]);
    expect(soft!.positions).toEqual([0, 1]);
    const bytes = soft!.vectors as Uint8Array;
    expect(new Float32Array(bytes.slice().buffer)).toEqual(Float32Array.of(0.5, -0.5, 0.25, -0.25));
    expect(answer.usage!.prompt_tokens_details.soft_tokens).toBe(2);
    expect(answer.usage!.prompt_tokens).toBe(tokenIds!.length);
  });

  test('with several soft tokens per chunk each chunk takes as many, and files stand before all', async () => {
    const pair = (chunk: (typeof found.chunks)[number]) => {
      return { ...chunk, vector: Float32Array.of(...chunk.vector, 7, 8) };
    };
    const files = [{ path: 'a.py', vector: Float32Array.of(-1, -2) }];
    const retrieval = answering({ ...found, chunks: found.chunks.map(pair), files });
    const { complete, workers } = await fakeGateway({ token }, { retrieval, softPerChunk: 2 });
    const answer = await complete({ prompt: 'before', rag: { repo: 'shop', file_tokens: 3 } });
    expect(retrieval.queries[0]).toMatchObject({ topK: 10, files: 3 });
    expect(answer.rag).toMatchObject({ chunks: [{ path: 'a.py' }, { path: 'b.py' }], files: [{ path: 'a.py' }] });
    expect(answer.rag!.degraded).toBeUndefined();
    const { soft } = workers.prefills[0]!;
    expect(soft!.positions).toEqual([0, 1, 2, 3, 4]);
    const bytes = soft!.vectors as Uint8Array;
    expect(Array.from(new Float32Array(bytes.slice().buffer))).toEqual([-1, -2, 0.5, -0.5, 7, 8, 0.25, -0.25, 7, 8]);
    expect(answer.usage!.prompt_tokens_details.soft_tokens).toBe(5);
  });

  test('vectors for another number of soft tokens per chunk count as those of another encoder', async () => {
    const { complete } = await fakeGateway({ token }, { retrieval: answering(found), softPerChunk: 2 });
    const answer = await complete({ prompt: 'x', rag: { repo: 'shop', file_tokens: 1 } });
    expect(answer.rag).toEqual({
      mode: 'compressed',
      chunks: [],
      files: [],
      index_version: 'v1',
      degraded: 'stale_index',
    });
  });

  test('an index without vectors of files says so where they are asked for, and its chunks stand all the same', async () => {
    const { complete } = await fakeGateway({ token }, { retrieval: answering(found) });
    const asked = await complete({ prompt: 'x', rag: { repo: 'shop', file_tokens: 1 } });
    expect(asked.rag).toMatchObject({ files: [], degraded: 'no_file_vectors', chunks: [{}, {}] });
    const notAsked = await complete({ prompt: 'x', rag: { repo: 'shop' } });
    expect(notAsked.rag).not.toHaveProperty('files');
    expect(notAsked.rag).not.toHaveProperty('degraded');
  });

  test('context is reported in the first chunk of a stream only', async () => {
    const { stream } = await fakeGateway({ token }, { retrieval: answering(found) });
    const chunks = await stream({ prompt: 'x', rag: { repo: 'shop' }, n: 2 });
    expect(chunks[0]!.rag).toMatchObject({ mode: 'compressed', index_version: 'v1' });
    expect(chunks.slice(1).every((each) => each.rag === undefined)).toBe(true);
  });

  test('context for a prompt of token ids is searched by its text', async () => {
    const retrieval = answering(found);
    const { complete } = await fakeGateway({ token }, { retrieval });
    await complete({ prompt: tokenizer.encode('def pop'), rag: { repo: 'shop' } });
    expect(retrieval.queries[0]).toMatchObject({ before: 'def pop', after: '' });
  });
});

describe('context that does not fit beside the prompt', () => {
  const room = 256;
  const ask = async (promptTokens: number, rag: object, max_tokens = 8) => {
    const { complete } = await fakeGateway({ token, capacity: room }, { retrieval: answering(found) });
    const prompt = Array<number>(promptTokens).fill(70);
    return complete({ prompt, max_tokens, rag: { repo: 'shop', ...rag } });
  };

  test.each([
    ['all of it fits', room - 8 - 2, 2, undefined],
    ['one chunk fits', room - 8 - 1, 1, 'no_room'],
    ['nothing fits', room - 8, 0, 'no_room'],
  ])('soft context gives way to the prompt: %s', async (_, promptTokens, kept, reason) => {
    const before = await degraded('no_room');
    const { status, rag, usage } = await ask(promptTokens, {});
    expect(status).toBe(200);
    expect(rag).toMatchObject({ chunks: found.chunks.slice(0, kept).map(({ path }) => ({ path })) });
    expect(rag!.chunks).toHaveLength(kept);
    expect(rag!.degraded).toBe(reason);
    expect(usage!.prompt_tokens_details.soft_tokens).toBe(kept);
    if (reason) await expect.poll(() => degraded('no_room')).toBe(before + 1);
  });

  test('context as text gives way to the prompt, and so does a file name that is too long', async () => {
    expect(await ask(room - 8, { mode: 'text' })).toMatchObject({
      status: 200,
      rag: { chunks: [], degraded: 'no_room' },
    });
    const path = 'folder/'.repeat(500);
    expect(await ask(1, { mode: 'text', path })).toMatchObject({
      status: 200,
      rag: { chunks: [], degraded: 'no_room' },
    });
    const short = await ask(1, { mode: 'text' });
    expect(short.rag!.chunks).toHaveLength(2);
    expect(short.rag!.degraded).toBeUndefined();
  });

  test('a prompt that does not fit without context is refused as without', async () => {
    expect(await ask(room - 7, {})).toMatchObject({ status: 400, error: { code: 'context_length_exceeded' } });
  });
});

test('the path of the file being edited has one form, however an editor spells it', async () => {
  const retrieval = answering(found);
  const { complete } = await fakeGateway({ token }, { retrieval });
  const seen = async (path: string) => {
    await complete({ prompt: 'x', rag: { repo: 'shop', path } });
    return retrieval.queries.at(-1)!.path;
  };
  for (const spelled of [
    'src\\a.py',
    '/src/a.py',
    './src//a.py/',
    'C:\\src\\a.py',
    'file:///src/a.py',
    'lib/../src/a.py',
  ]) {
    expect(await seen(spelled)).toBe('src/a.py');
  }
  expect(await seen('caf\u0065\u0301.py')).toBe('caf\u00e9.py');
  // No file of the repository.
  for (const spelled of ['', '../outside.py', 'file:///%ff']) expect(await seen(spelled)).toBeUndefined();
});

test('context as text does not need vectors that fit', async () => {
  const retrieval = answering({ ...found, fingerprint: 'of another encoder' });
  const { complete, workers } = await fakeGateway({ token }, { retrieval });
  const rag = { repo: 'shop', mode: 'text', path: 'c.py' };
  const answer = await complete({ prompt: 'x', suffix: '', rag });
  expect(answer.rag).toMatchObject({ mode: 'text', index_version: 'v1', chunks: [{ path: 'a.py' }, { path: 'b.py' }] });
  expect(answer.usage!.prompt_tokens_details.soft_tokens).toBe(0);
  const ids = workers.prefills[0]!.tokenIds!;
  expect(ids[0]).toBe(idOf('<|repo_name|>'));
  expect(tokenizer.decode(ids)).toContain('<|file_sep|>a.py\n# a.py\n');
});

describe('a model without projector', () => {
  const textOnly = {
    ...found,
    fingerprint: NO_VECTORS,
    chunks: [{ ...chunk('a.py', 1), vector: new Float32Array(0) }],
  };
  const withoutProjector = { contextFingerprint: undefined };

  test('compressed context of a model without projector is given as text, and the answer says so', async () => {
    for (const index of [textOnly, found]) {
      const options = { retrieval: answering(index), ...withoutProjector };
      const { complete, workers } = await fakeGateway({ token }, options);
      const answer = await complete({ prompt: 'x', suffix: '', rag: { repo: 'shop', path: 'c.py' } });
      const chunks = index.chunks.map(({ path }) => ({ path }));
      expect(answer.rag).toMatchObject({ mode: 'text', index_version: 'v1', chunks });
      expect(answer.rag?.degraded).toBeUndefined();
      expect(answer.usage!.prompt_tokens_details.soft_tokens).toBe(0);
      expect(tokenizer.decode(workers.prefills[0]!.tokenIds!)).toContain('<|file_sep|>a.py\n# a.py\n');
    }
  });

  test('with --without-projector off a model without projector gives no compressed context, and text on request', async () => {
    const retrieval = answering(textOnly);
    const options = { retrieval, ...withoutProjector, withoutProjector: 'off' } as const;
    const { complete } = await fakeGateway({ token }, options);
    const before = await degraded('no_projector');
    const answer = await complete({ prompt: 'x', rag: { repo: 'shop' } });
    expect(answer.rag).toEqual({ mode: 'compressed', chunks: [], index_version: null, degraded: 'no_projector' });
    expect(retrieval.queries).toEqual([]);
    await expect.poll(() => degraded('no_projector')).toBe(before + 1);
    const { rag } = await complete({ prompt: 'x', rag: { repo: 'shop', mode: 'text' } });
    expect(rag).toMatchObject({ mode: 'text', chunks: [{ path: 'a.py' }] });
  });

  test('an index without vectors is stale for compressed context once the model has a projector, and not for text', async () => {
    const { complete } = await fakeGateway({ token }, { retrieval: answering(textOnly) });
    const compressed = await complete({ prompt: 'x', rag: { repo: 'shop' } });
    expect(compressed.rag).toMatchObject({ mode: 'compressed', chunks: [], degraded: 'stale_index' });
    const text = await complete({ prompt: 'x', rag: { repo: 'shop', mode: 'text' } });
    expect(text.rag).toMatchObject({ mode: 'text', chunks: [{ path: 'a.py' }] });
    expect(text.rag?.degraded).toBeUndefined();
  });
});

test('chunks keep their order from one keystroke in a file to the next, also for clients that know no sessions', async () => {
  let turn = 0;
  const turning: Retrieval = {
    retrieve: async () => ({ ...found, chunks: ++turn % 2 ? found.chunks : found.chunks.toReversed() }),
  };
  const { complete } = await fakeGateway({ token }, { retrieval: turning });
  const order = async (path: string | undefined, repo = 'shop') => {
    const { rag } = await complete({ prompt: 'x', user: 'u', rag: { repo, path } });
    return (rag!.chunks as { path: string }[]).map((each) => each.path).join(' ');
  };
  expect([await order('c.py'), await order('c.py')]).toEqual(['a.py b.py', 'a.py b.py']);
  // Other places have their own: the second one sees what was found for it.
  expect([await order('d.py'), await order('e.py')]).toEqual(['a.py b.py', 'b.py a.py']);
  expect([await order('c.py', 'other'), await order('c.py')]).toEqual(['a.py b.py', 'a.py b.py']);
  expect([await order(undefined), await order(undefined)]).toEqual(['a.py b.py', 'b.py a.py']);
});

test('with rag.mode off nothing is searched', async () => {
  const retrieval = answering(found);
  const { complete } = await fakeGateway({ token }, { retrieval });
  const answer = await complete({ prompt: 'x', rag: { mode: 'off' } });
  expect(answer.rag).toEqual({ mode: 'off', chunks: [], index_version: null });
  expect(retrieval.queries).toEqual([]);
});

describe('a completion goes on without context', () => {
  const slow: Retrieval = {
    retrieve: (_, signal) =>
      new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true })),
  };
  const wide = { ...found, chunks: [{ ...chunk('a.py', 1), vector: new Float32Array(3) }] };
  const damaged = { ...found, chunks: [{ ...chunk('a.py', 1), vector: Float32Array.of(1, Number.NaN) }] };
  test.each<[string, string, Retrieval | undefined]>([
    ['there is no store', 'no_store', undefined],
    ['the store is down', 'store_unavailable', answering(new ServingError('store_unavailable', 'refused'))],
    ['the store holds nonsense', 'retrieval_failed', answering(new ServingError('store_invalid', 'bad row'))],
    ['retrieval takes too long', 'over_budget', slow],
    ['the vectors are of another encoder', 'stale_index', answering({ ...found, fingerprint: 'old' })],
    ['the vectors are of another width', 'stale_index', answering(wide)],
    ['the vectors are not numbers', 'stale_index', answering(damaged)],
    [
      'the index cannot be searched by its own retriever',
      'retrieval_failed',
      answering(new ServingError('invalid_request', 'no encoder', { param: 'retriever' })),
    ],
    ['the index is too large', 'index_too_large', answering(new ServingError('index_too_large', 'too large'))],
    ['too many indexes are being loaded', 'over_budget', answering(new ServingError('saturated', 'busy'))],
    ['all rows are damaged', 'rows_damaged', answering({ ...found, chunks: [], leftOut: 'damaged' })],
    ['the index is being replaced', 'retrieval_failed', answering(new ServingError('index_moved', 'moved'))],
  ])('a completion goes on without context where %s', async (_, reason, retrieval) => {
    const before = await degraded(reason);
    const { complete, workers } = await fakeGateway({ token }, { retrieval, retrievalBudgetMs: 5 });
    const answer = await complete({ prompt: 'x', rag: { repo: 'shop' } });
    expect(answer.status).toBe(200);
    expect(answer.rag).toMatchObject({ mode: 'compressed', chunks: [], degraded: reason });
    expect(answer.usage!.prompt_tokens_details.soft_tokens).toBe(0);
    expect(workers.prefills[0]!.soft!.positions).toEqual([]);
    await expect.poll(() => degraded(reason)).toBe(before + 1);
  });
});

test.each(['damaged', 'too_large'] as const)(
  'chunks stand in the prompt without those whose rows are %s, and the answer says so',
  async (leftOut) => {
    const { complete } = await fakeGateway({ token }, { retrieval: answering({ ...found, leftOut }) });
    for (const mode of ['compressed', 'text']) {
      const { rag, status } = await complete({ prompt: 'x', suffix: '', rag: { repo: 'shop', mode } });
      expect(status).toBe(200);
      expect(rag).toMatchObject({ degraded: `rows_${leftOut}`, chunks: [{ path: 'a.py' }, { path: 'b.py' }] });
    }
  },
);

describe('a retriever that encodes the query', () => {
  /** Takes its time, and says at once which retriever it uses. */
  const taking = (ms: number): Retrieval => ({
    retrieve: async (_, signal, onRetriever) => {
      onRetriever?.('fused');
      await sleep(ms, undefined, { signal }).catch(() => signal.throwIfAborted());
      return found;
    },
  });
  test.each([
    ['may take its own time', 50, 60_000, undefined],
    ['may not take longer than that', 60_000, 10, 'over_budget'],
  ])('a retriever that encodes the query %s', async (_, takesMs, denseBudgetMs, degradation) => {
    const budgets = { retrievalBudgetMs: 5, denseBudgetMs };
    const { complete } = await fakeGateway({ token }, { retrieval: taking(takesMs), ...budgets });
    const { rag } = await complete({ prompt: 'x', rag: { repo: 'shop' } });
    expect(rag?.degraded).toBe(degradation);
    expect(rag?.chunks).toHaveLength(degradation ? 0 : 2);
  });
});

test('the first query of a repository loads its index for later ones, whatever its own budget', async () => {
  let loads = 0;
  let loaded!: (index: undefined) => void;
  const store = {
    head: async () => HEAD,
    snapshot: async () => {
      loads++;
      await new Promise((resolve) => {
        loaded = resolve;
      });
      return { head: HEAD, ids: Buffer.alloc(0) };
    },
    entries: async () => [],
    contents: async () => [],
  } as unknown as Store;
  const retrieval = createRetrieval(store, { queryLines: 10 });
  const { complete } = await fakeGateway({ token }, { retrieval, retrievalBudgetMs: 20 });
  const degradation = async () => (await complete({ prompt: 'x', rag: { repo: 'shop' } })).rag?.degraded;
  expect(await degradation()).toBe('over_budget');
  expect(await degradation()).toBe('over_budget');
  loaded(undefined);
  await expect.poll(degradation).toBeUndefined();
  expect(loads).toBe(1);
});

test('a repository that does not exist is refused', async () => {
  const missing = answering(new ServingError('repo_not_found', 'no index of repository shop', { param: 'repo' }));
  const { complete } = await fakeGateway({ token }, { retrieval: missing });
  const answer = await complete({ prompt: 'x', rag: { repo: 'shop' } });
  expect(answer).toMatchObject({ status: 404, error: { code: 'repo_not_found', param: 'rag.repo' } });
});

test('a retriever that the client names and the index cannot serve is refused', async () => {
  const refusing = answering(new ServingError('invalid_request', 'no embeddings', { param: 'retriever' }));
  const { complete } = await fakeGateway({ token }, { retrieval: refusing });
  const answer = await complete({ prompt: 'x', rag: { repo: 'shop', retriever: 'dense' } });
  expect(answer).toMatchObject({ status: 400, error: { code: 'invalid_request', param: 'rag.retriever' } });
});

async function degraded(reason: string): Promise<number> {
  const { values } = await metrics.degraded.get();
  return values.find(({ labels }) => labels.reason === reason)?.value ?? 0;
}
