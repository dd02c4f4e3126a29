import { expect, onTestFinished, test, vi } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { type Answers, fakePool, OURS } from '../../support/fake-pool.ts';

test('workers are usable once they have answered, and no longer when they do not answer', async () => {
  const answers: Answers = {};
  const { workers, place, take } = fakePool(answers, ['p'], ['d']);
  expect(() => workers.assertUsable()).toThrow(/prefill worker: p has not answered yet/);
  expect(place()).toBeUndefined();
  await workers.refresh();
  expect(() => workers.capacity).toThrow(/p does not answer \(p: refused\)/);
  answers['p'] = { capacity: 50 };
  answers['d'] = {};
  await workers.refresh();
  expect(workers.capacity).toBe(50);
  expect(take().prefill.address).toBe('p');
  delete answers['d'];
  await workers.refresh();
  expect(workers.usable).toBe(false);
  expect(place()).toBeUndefined();
  expect(() => workers.assertUsable()).toThrow(expect.objectContaining({ code: 'no_worker', retryAfterSeconds: 1 }));
});

test('a gateway that itself stood still does not take workers for lost', async () => {
  const { workers } = fakePool({ p: 'by socket', d: 'by socket' }, ['p'], ['d']);
  const asked = workers.refresh();
  for (const start = performance.now(); performance.now() < start + 50; );
  await asked;
  expect(workers.usable).toBe(true);
});

test('workers of another bundle are not used, and the message has both fingerprints', async () => {
  const { workers } = fakePool({ p: {}, d: { fingerprint: 'b'.repeat(64) } }, ['p'], ['d']);
  await workers.refresh();
  expect(() => workers.assertUsable()).toThrow(`d serves bundle ${'b'.repeat(64)}, this gateway bundle ${OURS}`);
});

test('the message says when no worker is known', () => {
  expect(() => fakePool({}, [], []).workers.capacity).toThrow(/no prefill worker: none is known/);
});

test('the load of a worker includes what other gateways have given it', async () => {
  const { workers, take } = fakePool({ p1: { queued: 500 }, p2: {}, d: {} }, ['p1', 'p2'], ['d']);
  await workers.refresh();
  expect([workers.prefillBacklog, take(100).prefill.address, take(100).prefill.address]).toEqual([500, 'p2', 'p2']);
  expect(workers.prefillBacklog).toBe(700);
});

test('a worker that hangs loses its calls; one that refuses, as it drains, keeps them', async () => {
  const answers: Answers = { p: {}, d: {} };
  const { workers, take } = fakePool(answers, ['p'], ['d']);
  await workers.refresh();
  const { prefill, decodes } = take();
  delete answers['p'];
  answers['d'] = 'nothing';
  await workers.refresh();
  expect(workers.usable).toBe(false);
  expect(prefill.lost.aborted).toBe(false);
  expect(decodes[0]!.lost.reason).toMatchObject({ code: 'worker_stalled' });
  answers['p'] = answers['d'] = {};
  await workers.refresh();
  expect(take().decodes[0]!.lost.aborted).toBe(false);
});

test('a worker whose engine does not come to an end loses its calls, though it answers', async () => {
  const stuck = { overdueMs: 0 };
  const { workers, take } = fakePool({ p: {}, d: stuck }, ['p'], ['d']);
  await workers.refresh();
  stuck.overdueMs = 1000;
  await workers.refresh();
  const { decodes } = take();
  stuck.overdueMs = 1001;
  await workers.refresh();
  expect(decodes[0]!.lost.reason).toMatchObject({ code: 'worker_stalled' });
  expect(() => workers.assertUsable()).toThrow('d computes and does not come to an end');
  stuck.overdueMs = 0;
  await workers.refresh();
  expect(workers.usable).toBe(true);
});

test('a worker that is no longer listed ends what it has, and is given nothing new', async () => {
  const { workers, place, take, closed } = fakePool({ p1: {}, p2: {}, d: {} }, ['p1', 'p2'], ['d']);
  await workers.refresh();
  const { prefill } = take();
  expect(prefill.address).toBe('p1');
  workers.setPrefill(['p2']);
  expect(closed).toEqual([]);
  expect([take(), take(), place()].map((placement) => placement?.prefill.address)).toEqual(['p2', 'p2', undefined]);
  prefill.release();
  expect(closed).toEqual(['p1']);
});

test('a worker whose registration is gone is used as long as it answers', async () => {
  const answers: Answers = { p: {}, d: {} };
  const { workers, place, take, closed } = fakePool(answers, ['p'], ['d']);
  await workers.refresh();
  workers.setPrefill([], ['p']);
  await workers.refresh();
  const { prefill } = take();
  prefill.reportFailure(new ServingError('worker_lost', 'a call broke'));
  expect(place()).toBeUndefined();
  await workers.refresh();
  expect(take().prefill.address).toBe('p');
  delete answers['p'];
  await workers.refresh();
  expect(() => workers.assertUsable()).toThrow(/no prefill worker: none is known/);
  expect(closed).toEqual([]);
  // It may answer for another system now: it must be listed again.
  answers['p'] = {};
  workers.setPrefill([], ['p']);
  await workers.refresh();
  expect(workers.usable).toBe(false);
  workers.setPrefill(['p'], []);
  await workers.refresh();
  expect(workers.usable).toBe(true);
});

test.each<[string, Answers[string]]>([
  ['drains', new ServingError('draining', 'shutting down')],
  ['serves another bundle', { fingerprint: 'b'.repeat(64) }],
  ['hangs', 'nothing'],
])('a worker whose registration is gone and that %s is dropped', async (_, answer) => {
  const answers: Answers = { p: {}, d: {} };
  const { workers, closed } = fakePool(answers, ['p'], ['d']);
  await workers.refresh();
  workers.setPrefill([], ['p']);
  answers['p'] = answer;
  await workers.refresh();
  expect(closed).toEqual(['p']);
  answers['p'] = {};
  await workers.refresh();
  expect(workers.usable).toBe(false);
});

test('a worker whose registration has been gone for too long is dropped, though it answers', async () => {
  const { workers, closed } = fakePool({ p: {}, d: {} }, ['p'], ['d']);
  await workers.refresh();
  workers.setPrefill([], ['p']);
  workers.setPrefill([], []);
  expect(closed).toEqual(['p']);
});

test('a gateway counts its workers by what they compute on, and those that are lost no more', async () => {
  const counted = async () =>
    (await metrics.workersByDevice.get()).values
      .filter(({ labels }) => labels.role === 'decode')
      .map(({ labels, value }) => [labels.device, value]);
  const answers: Answers = { p: { device: 'cpu' }, d1: { device: 'webgpu' }, d2: { device: 'cpu' } };
  const { workers } = fakePool(answers, ['p'], ['d1', 'd2']);
  await workers.refresh();
  expect(await counted()).toEqual(
    expect.arrayContaining([
      ['webgpu', 1],
      ['cpu', 1],
    ]),
  );
  delete answers['d1'];
  await workers.refresh();
  expect(await counted()).toEqual(
    expect.arrayContaining([
      ['webgpu', 0],
      ['cpu', 1],
    ]),
  );
});

test('workers that nobody has given work are asked every few seconds, and those that have work at every turn', async () => {
  const options = { askEveryMs: 1, connectTimeoutMs: 10_000, stallTimeoutMs: 10_000 };
  const { workers, take, asked } = fakePool({ p: {}, d: {} }, ['p'], ['d'], options);
  onTestFinished(() => workers.close());
  let nowMs = 1_000_000;
  const clock = vi.spyOn(performance, 'now').mockImplementation(() => nowMs);
  onTestFinished(() => clock.mockRestore());
  const turns = async (count: number) => {
    const looked = clock.mock.calls.length;
    await vi.waitUntil(() => clock.mock.calls.length > looked + count, { timeout: 60_000 });
  };
  workers.watch();
  await turns(50);
  expect(asked.toSorted()).toEqual(['d', 'p']);
  nowMs += 2_999;
  await turns(50);
  expect(asked).toHaveLength(2);
  nowMs += 1;
  await turns(50);
  expect(asked.toSorted()).toEqual(['d', 'd', 'p', 'p']);
  const { decodes } = take();
  const count = (address: string) => asked.filter((each) => each === address).length;
  await vi.waitUntil(() => count('p') > 20 && count('d') > 20, { timeout: 60_000 });
  decodes[0]!.release();
});

test('an idle worker that hangs loses its calls no later than one that is asked all the time', async () => {
  const answers: Answers = { p: {}, d: {} };
  const timers = vi.spyOn(globalThis, 'setTimeout');
  onTestFinished(() => timers.mockRestore());
  const options = { askEveryMs: 1, connectTimeoutMs: 10_000, stallTimeoutMs: 10_000 };
  const { workers, asked } = fakePool(answers, ['p'], ['d'], options);
  onTestFinished(() => workers.close());
  const now = performance.now.bind(performance);
  let aheadMs = 0;
  const clock = vi.spyOn(performance, 'now').mockImplementation(() => now() + aheadMs);
  onTestFinished(() => clock.mockRestore());
  await workers.refresh();
  const deadlines = () => timers.mock.calls.map(([, delayMs]) => delayMs).filter((ms) => (ms ?? 0) >= 5_000);
  expect(deadlines()).toEqual([10_000, 10_000]);
  aheadMs = 3_000; // for so long they may have hung
  workers.watch();
  await vi.waitUntil(() => asked.length === 4, { timeout: 60_000 });
  expect(deadlines()).toEqual([10_000, 10_000, 7_000, 7_000]);
});
