import { expect, test } from 'vitest';
import { Sessions, sessionOf } from '../../../services/gateway/context/sessions.ts';
import type { CompletionRequest } from '../../../services/gateway/request.ts';
import type { Retrieved } from '../../../services/lib/rag/search/retrieval.ts';
import { NO_SOFT_TOKENS, type TokenPrompt } from '../../../services/lib/request/token-prompt.ts';

/** @param soft first element of its only soft token. */
const prompt = (ids: number[], soft?: number): TokenPrompt => ({
  ids: Int32Array.from(ids),
  soft: soft === undefined ? NO_SOFT_TOKENS : { positions: Int32Array.of(0), vectors: Float32Array.of(soft, 1) },
});
const found = (ids: string[], indexVersion = 'v'): Retrieved => ({
  indexVersion,
  fingerprint: 'f',
  retriever: 'jaccard',
  chunks: ids.map((id) => ({
    id,
    path: id,
    startLine: 1,
    endLine: 2,
    score: 1,
    text: id,
    vector: new Float32Array(1),
  })),
});
const old = found(['a', 'b', 'c', 'd', 'e']);

test('a session keeps the chunks of its last prompt as long as most of the new ones are among them', () => {
  const sessions = new Sessions();
  expect(sessions.settle('s', 'k', old)).toBe(old);
  expect(sessions.settle('s', 'k', found(['c', 'b', 'a', 'x', 'y']))).toBe(old);
  const other = found(['c', 'b', 'x', 'y', 'z']);
  expect(sessions.settle('s', 'k', other)).toBe(other);
});

test('a session has a key of a fixed size, whatever the client names, and no two are the same', () => {
  const named = (path: string, cacheSalt?: string) =>
    sessionOf({ session: undefined, rag: { repo: 'r', path }, cacheSalt } as CompletionRequest, 'acme')!;
  const names = [named('a.py'), named('a.py', 's'), named('\u0001'.repeat(4_096)), named('\u0001'.repeat(4_095))];
  expect(new Set(names.map(({ length }) => length)).size).toBe(1);
  expect(new Set(names).size).toBe(4);
});

test('a session with many chunks pushes out more of the others', () => {
  const sessions = new Sessions(12_500);
  for (let i = 0; i < 4; i++) sessions.servedBy(`s${i}`, 'w', prompt([1]));
  const large = { ...old, chunks: old.chunks.map((chunk) => ({ ...chunk, vector: new Float32Array(300) })) };
  sessions.settle('large', 'k', large);
  expect(['s0', 's1', 's2', 's3'].map((session) => sessions.affinity(session, prompt([1])).affinityWorker)).toEqual([
    undefined,
    undefined,
    'w',
    'w',
  ]);
  expect(sessions.settle('large', 'k', found(['a', 'b', 'c']))).toBe(large);
});

test('the soft tokens of files weigh in the memory of sessions as those of chunks do', () => {
  const sessions = new Sessions(12_500);
  for (let i = 0; i < 4; i++) sessions.servedBy(`s${i}`, 'w', prompt([1]));
  const files = ['a', 'b', 'c', 'd', 'e'].map((path) => ({ path, vector: new Float32Array(300) }));
  sessions.settle('large', 'k', { ...old, files });
  const known = ['s0', 's1', 's2', 's3'].filter((session) => sessions.affinity(session, prompt([1])).affinityWorker);
  expect(known.length).toBeLessThan(4);
  // They stay with the chunks that they were found with.
  expect(sessions.settle('large', 'k', found(['a', 'b', 'c'])).files).toBe(files);
});

test('a session takes the newly found chunks after another request, another version, or none', () => {
  const sessions = new Sessions();
  sessions.settle('s', 'k', old);
  for (const [key, next] of [
    ['k2', found(['a'])],
    ['k', found(['a', 'b'], 'w')],
    ['k', found([])],
  ] as const) {
    expect(sessions.settle('s', key, next)).toBe(next);
    sessions.settle('s', 'k', old);
  }
  const first = found(['a']);
  expect(sessions.settle('another', 'k', first)).toBe(first);
});

test('a session knows how much of a prompt its worker has: up to the first other token, and nothing after other soft tokens', () => {
  const sessions = new Sessions();
  expect(sessions.affinity('s', prompt([1])).affinityWorker).toBeUndefined();
  sessions.servedBy('s', 'w', prompt([1, 2, 3, 4], 0.5));
  const tokensOf = (next: TokenPrompt) => sessions.affinity('s', next).affinityTokens;
  expect(tokensOf(prompt([1, 2, 3, 4, 5], 0.5))).toBe(4);
  expect(tokensOf(prompt([1, 2, 9, 4], 0.5))).toBe(2);
  expect(tokensOf(prompt([1, 2], 0.5))).toBe(2);
  expect(tokensOf(prompt([1, 2, 3, 4], 0.6))).toBe(0);
  expect(tokensOf(prompt([1, 2, 3, 4]))).toBe(0);
});

test('a session remembers its prefill worker, and the least recently used sessions are forgotten', () => {
  const sessions = new Sessions(4 * (1024 + 4));
  for (let i = 0; i < 4; i++) sessions.servedBy(`s${i}`, `w${i}`, prompt([1]));
  sessions.servedBy('s0', 'w', prompt([1])); // again: weighs no more
  sessions.servedBy('new', 'n', prompt([1]));
  expect(['s0', 's1', 's2', 'new'].map((session) => sessions.affinity(session, prompt([1])).affinityWorker)).toEqual([
    'w',
    undefined,
    'w2',
    'n',
  ]);
});

test('another gateway learns which worker has the prompt of a session, and how much of the next one, in whole blocks', () => {
  const told: unknown[] = [];
  const [here, there] = [new Sessions(undefined, (news) => told.push(news)), new Sessions()];
  const ids = Array.from({ length: 100 }, (_, i) => i);
  here.servedBy('s', 'w', prompt(ids, 0.5));
  const news = JSON.parse(JSON.stringify(told[0]));
  there.servedElsewhere(news);
  const of = (next: TokenPrompt, session = 's') => there.affinity(session, next);
  expect(of(prompt([...ids, 1, 2], 0.5))).toEqual({ affinityWorker: 'w', affinityTokens: 96 });
  expect(of(prompt(ids.slice(0, 70), 0.5)).affinityTokens).toBe(64);
  expect(of(prompt([...ids.slice(0, 40), 7, 7], 0.5)).affinityTokens).toBe(32);
  expect(of(prompt(ids, 0.6)).affinityTokens).toBe(0);
  expect(of(prompt(ids, 0.5), 'other').affinityWorker).toBeUndefined();
  there.servedBy('s', 'w2', prompt([1]));
  expect(of(prompt(ids, 0.5)).affinityWorker).toBe('w2');
});

test('what another gateway tells takes bounded memory, and a wrong form is passed over', () => {
  const told: { session: string; prefill: string; blocks: string }[] = [];
  const here = new Sessions(undefined, (news) => told.push(news));
  here.servedBy('s', 'w', prompt(Array(100_000).fill(1)));
  expect(told[0]!.blocks.length).toBe(256 * 8);
  const there = new Sessions(5 * (1024 + 256 * 8));
  for (let i = 0; i < 20; i++) there.servedElsewhere({ ...told[0], session: `s${i}` });
  const known = Array.from({ length: 20 }, (_, i) => there.affinity(`s${i}`, prompt([1])).affinityWorker);
  expect(known.filter((worker) => worker === 'w').length).toBe(5);
  for (const news of [
    null,
    {},
    { ...told[0], blocks: 'x'.repeat(256 * 8 + 1) },
    { ...told[0], prefill: 'x'.repeat(301) },
  ]) {
    const sessions = new Sessions();
    sessions.servedElsewhere(news);
    expect(sessions.affinity('s', prompt([1])).affinityWorker).toBeUndefined();
  }
});

test('after ten times as many sessions as there is memory for, no more than the limit is remembered', () => {
  const ids = Array.from({ length: 1_000 }, (_, i) => i);
  const each = 1_024 + 4 * ids.length;
  const sessions = new Sessions(50 * each);
  for (let i = 0; i < 500; i++) sessions.servedBy(`s${i}`, 'w', prompt(ids));
  const known = ids.slice(0, 500).filter((i) => sessions.affinity(`s${i}`, prompt(ids)).affinityWorker !== undefined);
  expect(known).toHaveLength(50);
});

test('a session of which nothing is known has a home, which counts if gateways do not hear of each other', () => {
  expect(new Sessions().affinity('s', prompt([1, 2, 3, 4]))).toEqual({ homeOf: 's', homeTokens: 2 });
  const sharing = new Sessions(undefined, () => {});
  expect(sharing.affinity('s', prompt([1, 2, 3, 4]))).toEqual({ homeOf: 's', homeTokens: 0 });
});
