import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { withBreaker } from '../../../services/lib/rag/store/breaker.ts';
import type { Store } from '../../../services/lib/rag/store/store.ts';

const unavailable = new ServingError('store_unavailable', 'it is down');
const isOpen = async () => (await metrics.storeCircuitOpen.get()).values[0]?.value === 1;

let answer: (repo?: string) => Promise<undefined>;
let calls: number;
let store: Store;
beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setImmediate'] });
  answer = async () => undefined;
  calls = 0;
  const read = (repo: string) => {
    calls++;
    return answer(repo);
  };
  const bare = { address: 'somewhere', head: read, snapshot: read, contents: read, close: async () => {} };
  store = withBreaker(bare as unknown as Store, { budgetMs: 60, failures: 3, trialMs: 100 });
});
afterEach(async () => {
  await store.close();
  vi.useRealTimers();
});

const ask = (repo = 'repo') => store.head(repo).catch((error: ServingError) => error.code);
async function fail(times: number) {
  answer = () => Promise.reject(unavailable);
  for (let i = 0; i < times; i++) await ask();
}

test('failures in a row open the circuit; while it is open no call reaches the store', async () => {
  await fail(2);
  answer = async () => undefined;
  await ask();
  await fail(2);
  expect(await isOpen()).toBe(false);
  await fail(1);
  expect(await isOpen()).toBe(true);
  expect(calls).toBe(6);
  await expect(store.head('repo')).rejects.toMatchObject({
    code: 'store_unavailable',
    message: expect.stringContaining('somewhere'),
  });
  await expect(store.snapshot('repo')).rejects.toMatchObject({ code: 'store_unavailable' });
  expect(calls).toBe(6);
});

test('a store is tried in the background until it answers, at the same pace however long it is away', async () => {
  await fail(3);
  await vi.advanceTimersByTimeAsync(99);
  expect(calls).toBe(3);
  await vi.advanceTimersByTimeAsync(1);
  expect(calls).toBe(4); // the trial
  await vi.advanceTimersByTimeAsync(99);
  expect(calls).toBe(4);
  await vi.advanceTimersByTimeAsync(901);
  expect(calls).toBe(14);
  expect(await isOpen()).toBe(true);
  answer = async () => undefined;
  await vi.advanceTimersByTimeAsync(100);
  expect(await isOpen()).toBe(false);
  expect(await ask()).toBeUndefined();
});

test('slow answers count as failures, and are still delivered', async () => {
  const late: ((value: undefined) => void)[] = [];
  answer = () => new Promise((resolve) => late.push(resolve));
  const asked: Promise<unknown>[] = [];
  for (let i = 0; i < 3; i++) {
    expect(await isOpen()).toBe(false);
    asked.push(ask());
    await vi.advanceTimersByTimeAsync(21);
  }
  expect(await isOpen()).toBe(true);
  for (const resolve of late) resolve(undefined);
  expect(await Promise.all(asked)).toEqual([undefined, undefined, undefined]);
});

test('an answer is slow if it leaves a retrieval no time for its second read', async () => {
  answer = () => new Promise((resolve) => setTimeout(() => resolve(undefined), 50));
  for (let i = 0; i < 3; i++) {
    const asked = ask();
    await vi.advanceTimersByTimeAsync(50);
    await asked;
  }
  expect(await isOpen()).toBe(true);
});

test('a trial reads what is asked for, so that one dead node of a cluster does not shut out the others', async () => {
  answer = async (repo) => {
    if (repo !== 'on a live node') throw unavailable;
    return undefined;
  };
  for (let i = 0; i < 3; i++) await ask('on a dead node');
  await vi.advanceTimersByTimeAsync(100);
  expect(await isOpen()).toBe(true); // nothing else was asked for
  expect(await ask('on a live node')).toBe('store_unavailable');
  await vi.advanceTimersByTimeAsync(100);
  expect(await isOpen()).toBe(false);
  expect(await ask('on a live node')).toBeUndefined();
});

test('one hiccup is one failure, however many calls it catches', async () => {
  answer = () => new Promise(() => {});
  for (let i = 0; i < 50; i++) void ask();
  await vi.advanceTimersByTimeAsync(21);
  answer = () => Promise.reject(unavailable);
  await Promise.all([ask(), ask(), ask(), ask()]);
  expect(await isOpen()).toBe(false);
  await ask();
  expect(await isOpen()).toBe(true);
});

test('loading a whole index may take long', async () => {
  answer = () => new Promise(() => {});
  for (let i = 0; i < 5; i++) void store.snapshot('repo');
  await vi.advanceTimersByTimeAsync(10_000);
  expect(await isOpen()).toBe(false);
});

test('rows that are slow or fail do not open the circuit, because they may be large, and heads tell of the store', async () => {
  const rows = () => store.contents('repo', 'fingerprint', ['1']).catch((error: ServingError) => error.code);
  answer = () => Promise.reject(unavailable);
  for (let i = 0; i < 10; i++) expect(await rows()).toBe('store_unavailable');
  expect(await isOpen()).toBe(false);
  answer = () => new Promise(() => {});
  for (let i = 0; i < 10; i++) void rows();
  await vi.advanceTimersByTimeAsync(10_000);
  expect(await isOpen()).toBe(false);
  await fail(3);
  expect(await isOpen()).toBe(true);
  expect(await rows()).toBe('store_unavailable');
});

test('a damaged index is not a failure of the store', async () => {
  answer = () => Promise.reject(new ServingError('store_invalid', 'damaged'));
  for (let i = 0; i < 5; i++) expect(await ask()).toBe('store_invalid');
  expect(await isOpen()).toBe(false);
});

test('a closed store is not tried any more', async () => {
  await fail(3);
  await store.close();
  await vi.advanceTimersByTimeAsync(10_000);
  expect(calls).toBe(3);
});

test('heads of a list say nothing about the store, and are refused while the circuit is open', async () => {
  answer = () => new Promise(() => {});
  for (let i = 0; i < 10; i++) {
    void store.head(`fat:${i}`, { isListed: true });
    await vi.advanceTimersByTimeAsync(21);
  }
  expect(await isOpen()).toBe(false);
  expect(calls).toBe(10);
  await fail(3);
  await expect(store.head('fat:0', { isListed: true })).rejects.toMatchObject({ code: 'store_unavailable' });
});
