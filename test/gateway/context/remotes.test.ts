import { expect, test } from 'vitest';
import { Remotes } from '../../../services/gateway/context/remotes.ts';
import { MemoryStore } from '../../support/memory-store.ts';

const URL_A = 'git@example.com:acme/a.git';
const anybody = { tenant: 'default', mayUse: () => true };
const { signal } = new AbortController();

function storeOf(remotes: Readonly<Record<string, string>>): MemoryStore {
  const store = new MemoryStore();
  for (const [repo, remote] of Object.entries(remotes)) store.publishFiles(repo, { 'a.py': 'x = 1' }, { remote });
  return store;
}

test('a repository is found by any form of its remote URL, and one without that URL is not', async () => {
  const remotes = new Remotes(storeOf({ a: 'example.com/acme/a', b: 'example.com/acme/b' }), 60_000);
  for (const url of [URL_A, 'https://me:secret@example.com/acme/a']) {
    expect(await remotes.find(url, anybody, signal)).toBe('a');
  }
  expect(await remotes.find('https://example.com/acme/c', anybody, signal)).toBeUndefined();
  expect(await remotes.find('/srv/a', anybody, signal)).toBeUndefined();
});

test('a remote URL finds no repository of another tenant, and none that the key may not use', async () => {
  const remotes = new Remotes(storeOf({ 'acme:a': 'example.com/acme/a', 'acme:b': 'example.com/acme/a' }), 60_000);
  const acme = (mayUse: (name: string) => boolean) => remotes.find(URL_A, { tenant: 'acme', mayUse }, signal);
  expect(await remotes.find(URL_A, anybody, signal)).toBeUndefined();
  expect(await acme(() => true)).toBe('acme:a');
  expect(await acme((name) => name === 'b')).toBe('acme:b');
  expect(await acme(() => false)).toBeUndefined();
});

test('the store is asked again after two seconds for an unknown URL, and after thirty for a known one', async () => {
  const store = storeOf({ a: 'example.com/acme/a' });
  let nowMs = 0;
  const remotes = new Remotes(store, 60_000, () => nowMs);
  const looks = () => store.asked.filter(({ repo }) => repo === 'a').length;
  await remotes.find(URL_A, anybody, signal);
  await remotes.find(URL_A, anybody, signal);
  await remotes.find('https://example.com/new', anybody, signal);
  expect(looks()).toBe(1);
  store.publishFiles('new', { 'a.py': 'x' }, { remote: 'example.com/new' });
  nowMs = 2_001;
  expect(await remotes.find('https://example.com/new', anybody, signal)).toBe('new');
  expect(looks()).toBe(2);
  nowMs = 33_000;
  expect(await remotes.find(URL_A, anybody, signal)).toBe('a');
  expect(looks()).toBe(3);
});

test('a store that is late costs the repository, and what it tells counts for later requests', async () => {
  const store = storeOf({ a: 'example.com/acme/a' });
  let answer!: () => void;
  const held = new Promise<void>((resolve) => {
    answer = resolve;
  });
  store.delay = () => held;
  const remotes = new Remotes(store, 1);
  expect(await remotes.find(URL_A, anybody, signal)).toBeUndefined();
  answer();
  await expect.poll(() => remotes.find(URL_A, anybody, signal)).toBe('a');
});

test('a request that is given up does not wait for the store', async () => {
  const store = storeOf({ a: 'example.com/acme/a' });
  store.delay = () => new Promise(() => {});
  const gone = new AbortController();
  const finding = new Remotes(store, 60_000).find(URL_A, anybody, gone.signal);
  gone.abort(new Error('gone'));
  await expect(finding).rejects.toThrow('gone');
});
