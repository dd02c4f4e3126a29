import { expect, onTestFinished, test, vi } from 'vitest';
import type { WorkerLease } from '../../../services/gateway/workers/worker.ts';
import { type ErrorCode, ServingError } from '../../../services/lib/process/errors.ts';
import type { PrefillClient } from '../../../services/lib/rpc/contract.ts';
import { fakePool } from '../../support/fake-pool.ts';

test('a worker has less left of a prompt the longer it computes it', async () => {
  vi.useFakeTimers({ toFake: ['performance'] });
  onTestFinished(() => void vi.useRealTimers());
  const says = { queued: 0, prefillTokensPerSecond: 100 };
  const { workers, take } = fakePool({ p1: says, p2: says, d: {} }, ['p1', 'p2'], ['d']);
  await workers.refresh();
  const first = take(1000).prefill;
  const second = take(800).prefill;
  expect([first.address, second.address, workers.prefillBacklog]).toEqual(['p1', 'p2', 1800]);
  first.started();
  vi.advanceTimersByTime(4_000);
  expect(workers.prefillBacklog).toBe(600 + 800);
  expect(take(50).prefill.address).toBe('p1');
  says.queued = 1050; // as a whole, by the worker that computes it
  await workers.refresh();
  expect(workers.prefillBacklog).toBe(600 + 50 + 800 + 250); // ours are not counted again as others'
  second.started();
  vi.advanceTimersByTime(60_000);
  expect(workers.prefillBacklog).toBe(1 + 50 + 1 + 250); // late, but not done
  first.releaseLoad();
  expect(workers.prefillBacklog).toBe(50 + 1 + 250);
});

test('a worker that says it is gone is left alone until it answers; a full one is not blamed', async () => {
  const { workers, take } = fakePool({ p: {}, d: {} }, ['p'], ['d']);
  await workers.refresh();
  take().prefill.reportFailure(new ServingError('saturated', 'full'));
  expect(workers.usable).toBe(true);
  take().prefill.reportFailure(new ServingError('draining', 'bye'));
  expect(workers.usable).toBe(false);
  await workers.refresh();
  expect(workers.usable).toBe(true);
});

test('a worker that answers and yet fails again and again is left alone for a while', async () => {
  const { workers, take } = fakePool({ p: {}, d: {} }, ['p'], ['d']);
  await workers.refresh();
  const end = (how: (prefill: WorkerLease<PrefillClient>) => void) => {
    const { prefill, decodes } = take();
    how(prefill);
    for (const worker of [prefill, ...decodes]) worker.release();
  };
  vi.useFakeTimers({ toFake: ['performance'] });
  onTestFinished(() => void vi.useRealTimers());
  const fail = (code: ErrorCode = 'runtime_failed') => {
    vi.advanceTimersByTime(1000);
    end((prefill) => prefill.reportFailure(new ServingError(code, 'NaN')));
  };
  fail();
  fail('kv_truncated');
  end((prefill) => prefill.reportSuccess());
  fail();
  fail('lease_expired'); // nobody's fault
  fail('kv_truncated');
  expect(workers.usable).toBe(true);
  fail();
  await workers.refresh();
  expect(() => workers.assertUsable()).toThrow(/p fails one request after another/);
});
