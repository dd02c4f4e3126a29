/** Side indexes as gateways have them made, over a real LMDB store. The indexer is what its service calls. */
import { expect, onTestFinished, test, vi } from 'vitest';
import { SideIndexing, type SideIndexingParts } from '../../../services/gateway/rollout/side-indexing.ts';
import { reembed } from '../../../services/indexer/reembed.ts';
import { Paced } from '../../../services/lib/async/paced.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { repoKey } from '../../../services/lib/rag/store/repo-key.ts';
import { jsonOfFiles } from '../../support/archives.ts';
import { fakeIndexer, python, RememberingEncoder } from '../../support/fake-indexer.ts';
import { keepingLog } from '../../support/keeping-log.ts';

const SIGNAL = new AbortController().signal;
const SOON = { timeout: 60_000 };

/** A store with an index of `shop`, and an indexer of another encoder beside it. */
async function start() {
  const { store, client } = await fakeIndexer();
  async function* upload() {
    yield { start: { requestId: 'r', tenant: 'default', repo: 'shop', format: 'json' } };
    yield { data: jsonOfFiles({ 'a.py': python('a', 12) }) };
  }
  for await (const _ of client.index(upload(), SIGNAL));
  const encoder = new RememberingEncoder('next');
  const paced = new Paced(1);
  const indexer: SideIndexingParts['indexer'] = {
    reembed: ({ tenant, repo }, signal) => reembed({ repo: repoKey(tenant!, repo!), store, encoder, paced, signal }),
  };
  return { store, encoder, indexer };
}

/** Side indexing as one gateway does it, until the test ends. */
function gateway(parts: Pick<SideIndexingParts, 'store' | 'indexer'>) {
  const lines: Record<string, unknown>[] = [];
  const indexing = new SideIndexing({
    keys: { tenants: ['default'] },
    fingerprint: 'next',
    log: keepingLog(lines),
    ...parts,
  });
  const closing = new AbortController();
  const running = indexing.run(closing.signal);
  const stop = async () => {
    closing.abort();
    await running;
  };
  onTestFinished(stop);
  return { lines, indexing, stop };
}

test('of two gateways one has a side index made; the other one takes that for no problem, and finds it made', async () => {
  const { store, encoder, indexer } = await start();
  let goOn = () => {};
  const held = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  const begun = new Promise<void>((resolve) => {
    encoder.before = async () => {
      resolve();
      await held;
    };
  });
  const first = gateway({ store, indexer });
  await begun;
  const second = gateway({ store, indexer });
  await vi.waitUntil(() => second.indexing.progress.repositories === 1, SOON);
  expect(second.indexing.progress).toEqual({ repositories: 1, current: 0, embedded: 0 });
  goOn();
  for (const { indexing } of [first, second]) await vi.waitUntil(() => indexing.progress.current === 1, SOON);
  expect(first.indexing.progress.embedded).toBe(encoder.texts.length);
  expect(second.indexing.progress.embedded).toBe(0);
  expect([...first.lines, ...second.lines]).toEqual([]);
});

test.each([
  ['an indexer', 'shop: the row is damaged'],
  ['a store', 'the store is away'],
])('a problem of %s that stays is in the log once, and in the progress until it is over', async (whose, problem) => {
  const { store, indexer } = await start();
  let isWell = false;
  let asked = 0;
  const fail = () => {
    asked++;
    throw new ServingError('store_invalid', problem.replace('shop: ', ''));
  };
  const { lines, indexing } = gateway({
    indexer: { reembed: async (...call) => (isWell || whose === 'a store' ? indexer.reembed(...call) : fail()) },
    store: {
      head: (repo) => store.head(repo),
      repositories: async (tenant) => (isWell || whose === 'an indexer' ? store.repositories(tenant) : fail()),
    },
  });
  await vi.waitUntil(() => asked === 3, SOON);
  const message = 'a side index is behind: it is tried again';
  expect(lines).toEqual([{ level: 'warn', problem, message }]);
  expect(indexing.progress.problem).toBe(problem);
  isWell = true;
  await vi.waitUntil(() => indexing.progress.problem === undefined, SOON);
  expect(indexing.progress.current).toBe(1);
  expect(lines).toHaveLength(1);
});

test('a gateway that closes while a side index is made says nothing of it', async () => {
  const { store, encoder, indexer } = await start();
  const begun = new Promise<void>((resolve) => {
    encoder.before = (signal) =>
      new Promise((_, reject) => {
        signal?.addEventListener('abort', () => reject(signal.reason));
        resolve();
      });
  });
  const { lines, stop } = gateway({ store, indexer });
  await begun;
  await stop();
  expect(lines).toEqual([]);
});
