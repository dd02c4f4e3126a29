import { stat } from 'node:fs';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import type { WorkerLease } from '../../../services/gateway/workers/worker.ts';
import { type PlacementRequest, WorkerPool } from '../../../services/gateway/workers/worker-pool.ts';
import { type ErrorCode, ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import type { DecodeClient, PrefillClient } from '../../../services/lib/rpc/contract.ts';
import { keepingLog } from '../../support/fake-gateway.ts';

const OURS = 'a'.repeat(64);

interface Says {
  fingerprint?: string;
  capacity?: number;
  slots?: number;
  freeSlots?: number;
  queued?: number;
  prefillTokensPerSecond?: number;
  overdueMs?: number;
}

/** Workers that answer with what `answers` says about their address now; 'nothing' for one that hangs. */
function pool(answers: Record<string, Says | Error | 'nothing' | 'by socket'>, prefill: string[], decode: string[]) {
  const closed: string[] = [];
  const client = (address: string) =>
    ({
      describe: async (signal: AbortSignal) => {
        const answer = answers[address];
        if (answer === undefined) throw new ServingError('worker_lost', `${address}: refused`);
        if (answer === 'nothing') {
          await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
        }
        if (answer instanceof Error) throw answer;
        if (answer === 'by socket') {
          await new Promise((resolve, reject) => {
            signal.addEventListener('abort', () => reject(signal.reason));
            stat('.', resolve); // comes in the phase of the event loop in which sockets are read
          });
        }
        const described = { fingerprint: OURS, capacity: 100, slots: 4, freeSlots: 4, queued: 0 };
        return { ...described, prefillTokensPerSecond: 0, overdueMs: 0, ...(answer as Says) };
      },
      close: () => closed.push(address),
    }) as unknown as PrefillClient & DecodeClient;
  const workers = new WorkerPool({
    fingerprint: OURS,
    connectPrefill: client,
    connectDecode: client,
    connectTimeoutMs: 5,
    stallTimeoutMs: 1000,
    localPrefill: 'auto',
    localPrefillTokens: 256,
    log: keepingLog([]),
  });
  workers.setPrefill(prefill);
  workers.setDecode(decode);
  const place = (promptTokens = 1, decodes = 1) => workers.place({ promptTokens, decodes, positions: 10 });
  /** As {@link place}, where there must be room. */
  const take = (promptTokens?: number, decodes?: number) => place(promptTokens, decodes)!;
  return { workers, place, take, closed };
}

describe('workers', () => {
  test('are usable once they have answered, and no longer when they do not', async () => {
    const answers: Parameters<typeof pool>[0] = {};
    const { workers, place, take } = pool(answers, ['p'], ['d']);
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

  test('are not taken for lost by a gateway that itself stood still', async () => {
    const { workers } = pool({ p: 'by socket', d: 'by socket' }, ['p'], ['d']);
    const asked = workers.refresh();
    for (const start = performance.now(); performance.now() < start + 50; );
    await asked;
    expect(workers.usable).toBe(true);
  });

  test('of another bundle are not used, and the message has both fingerprints', async () => {
    const { workers } = pool({ p: {}, d: { fingerprint: 'b'.repeat(64) } }, ['p'], ['d']);
    await workers.refresh();
    expect(() => workers.assertUsable()).toThrow(`d serves bundle ${'b'.repeat(64)}, this gateway bundle ${OURS}`);
  });

  test('none known is said so', () => {
    expect(() => pool({}, [], []).workers.capacity).toThrow(/no prefill worker: none is known/);
  });

  test('share work by what is in flight, and take turns when equal', async () => {
    const { workers, take } = pool({ p1: {}, p2: {}, d1: {}, d2: {} }, ['p1', 'p2'], ['d1', 'd2']);
    await workers.refresh();
    const big = take(1000, 1);
    const small = take(10, 3);
    expect([big.prefill.address, small.prefill.address]).toEqual(['p1', 'p2']);
    expect(small.decodes.map(({ address }) => address)).toEqual(['d2', 'd1', 'd2']);
    expect(take(10).prefill.address).toBe('p2');
    big.prefill.release();
    big.prefill.release();
    expect(take(5).prefill.address).toBe('p1');
  });

  test('count what other gateways have given them', async () => {
    const { workers, take } = pool({ p1: { queued: 500 }, p2: {}, d: {} }, ['p1', 'p2'], ['d']);
    await workers.refresh();
    expect([workers.prefillBacklog, take(100).prefill.address, take(100).prefill.address]).toEqual([500, 'p2', 'p2']);
    expect(workers.prefillBacklog).toBe(700);
  });

  test('have less left of a prompt the longer they compute it', async () => {
    vi.useFakeTimers({ toFake: ['performance'] });
    onTestFinished(() => void vi.useRealTimers());
    const says = { queued: 0, prefillTokensPerSecond: 100 };
    const { workers, take } = pool({ p1: says, p2: says, d: {} }, ['p1', 'p2'], ['d']);
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

  test('that do both keep a request to themselves', async () => {
    const both = ['c1', 'c2'];
    const { workers, take } = pool({ c1: {}, c2: {} }, both, both);
    await workers.refresh();
    for (let i = 0; i < 3; i++) {
      const { prefill, decodes } = take(1, 2);
      expect(decodes.map(({ address }) => address)).toEqual([prefill.address, prefill.address]);
    }
  });

  test('compute a prompt apart from where it is decoded, unless most of it is cached there', async () => {
    const placed = async () => {
      const { values } = await metrics.prefillPlaced.get();
      return values.map(({ labels, value }) => [labels.where, labels.reason, value]);
    };
    metrics.prefillPlaced.reset();
    const { workers } = pool({ p: {}, c: {} }, ['p', 'c'], ['c']);
    await workers.refresh();
    const prompt = { promptTokens: 2000, decodes: 1, positions: 10 };
    const where = (near: Partial<PlacementRequest>) => {
      const { prefill, decodes } = workers.place({ ...prompt, ...near })!;
      for (const hold of [prefill, ...decodes]) hold.release();
      return prefill.address;
    };
    expect(where({})).toBe('p');
    expect(where({ affinityWorker: 'c', affinityTokens: 1990 })).toBe('c');
    expect(where({ affinityWorker: 'c', affinityTokens: 1000 })).toBe('p');
    expect(where({ affinityWorker: 'p', affinityTokens: 1990 })).toBe('p');
    expect(await placed()).toEqual([
      ['remote', 'long_prompt', 3],
      ['local', 'short_prompt', 1],
    ]);
  });

  test('have a prompt that they have most of already, unless they have more to do than that saves', async () => {
    const { workers, take } = pool({ p1: {}, p2: {}, d: { slots: 9 } }, ['p1', 'p2'], ['d']);
    await workers.refresh();
    const place = (nearTokens: number) =>
      workers.place({ promptTokens: 400, decodes: 1, positions: 10, affinityWorker: 'p1', affinityTokens: nearTokens })!
        .prefill;
    const first = place(0);
    expect(first.address).toBe('p1');
    expect(place(300).address).toBe('p2');
    first.release();
    take(700); // to p1
    expect([place(299).address, place(300).address]).toEqual(['p2', 'p1']);
  });

  test('are given two prompts at most, and half as many sequences again as they have slots', async () => {
    const { workers, place, take } = pool({ p: {}, d: { slots: 2, freeSlots: 2 } }, ['p'], ['d']);
    await workers.refresh();
    const first = take();
    take();
    expect(place()).toBeUndefined();
    first.prefill.release();
    take().prefill.release();
    expect([place(), place(1, 0)]).toEqual([undefined, expect.anything()]); // three sequences; one token needs no slot
    let room = 0;
    workers.onChange(() => room++);
    first.decodes[0]!.release();
    expect(room).toBe(1);
  });

  test('full of the work of others are still given one sequence', async () => {
    const { workers, place } = pool({ p: {}, d: { slots: 2, freeSlots: 0, queued: 9 } }, ['p'], ['d']);
    await workers.refresh();
    expect([place(), place()]).toEqual([expect.anything(), undefined]);
  });

  test('whose slots are too small are left out', async () => {
    const { workers, place } = pool({ p: { capacity: 9 }, d: {} }, ['p'], ['d']);
    await workers.refresh();
    expect(place()).toBeUndefined();
  });
});

test('everybody who subscribed to the pool hears of a change, until they unsubscribe', async () => {
  const { workers } = pool({ p: {}, d: {} }, ['p'], ['d']);
  const heard: string[] = [];
  const unsubscribe = workers.onChange(() => heard.push('first'));
  workers.onChange(() => heard.push('second'));
  workers.setPrefill([]);
  expect(heard).toEqual(['first', 'second']);
  unsubscribe();
  workers.setDecode([]);
  expect(heard).toEqual(['first', 'second', 'second']);
});

describe('a worker', () => {
  test('that says it is gone is left alone until it answers; a full one is not blamed', async () => {
    const { workers, take } = pool({ p: {}, d: {} }, ['p'], ['d']);
    await workers.refresh();
    take().prefill.failed(new ServingError('saturated', 'full'));
    expect(workers.usable).toBe(true);
    take().prefill.failed(new ServingError('draining', 'bye'));
    expect(workers.usable).toBe(false);
    await workers.refresh();
    expect(workers.usable).toBe(true);
  });

  test('that answers and fails again and again is left alone for a while', async () => {
    const { workers, take } = pool({ p: {}, d: {} }, ['p'], ['d']);
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
      end((prefill) => prefill.failed(new ServingError(code, 'NaN')));
    };
    fail();
    fail('kv_truncated');
    end((prefill) => prefill.succeeded());
    fail();
    fail('lease_expired'); // nobody's fault
    fail('kv_truncated');
    expect(workers.usable).toBe(true);
    fail();
    await workers.refresh();
    expect(() => workers.assertUsable()).toThrow(/p fails one request after another/);
  });

  test('that hangs loses its calls; one that refuses, as it drains, keeps them', async () => {
    const answers: Parameters<typeof pool>[0] = { p: {}, d: {} };
    const { workers, take } = pool(answers, ['p'], ['d']);
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

  test('whose engine does not come to an end loses its calls, though it answers', async () => {
    const stuck = { overdueMs: 0 };
    const { workers, take } = pool({ p: {}, d: stuck }, ['p'], ['d']);
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

  test('that failed a request is not given it again where there are others, whatever it has of it', async () => {
    const { workers } = pool({ p1: {}, p2: {}, d1: {}, d2: {} }, ['p1', 'p2'], ['d1', 'd2']);
    await workers.refresh();
    const prompt = { promptTokens: 400, decodes: 1, positions: 10, affinityWorker: 'p1', affinityTokens: 399 };
    const place = (...avoid: string[]) => {
      const { prefill, decodes } = workers.place({ ...prompt, preferNot: new Set(avoid) })!;
      for (const hold of [prefill, ...decodes]) hold.release();
      return [prefill.address, decodes[0]!.address];
    };
    expect(place()).toEqual(['p1', 'd1']);
    expect(place('p1', 'd2')).toEqual(['p2', 'd1']);
    expect(place('p1', 'p2')).toEqual(['p1', 'd2']); // better than none
  });

  test('that decodes as well and is full is no place for the prompts of others', async () => {
    const full = { slots: 4, freeSlots: 0, queued: 6 };
    const { workers } = pool({ p: {}, c1: full, c2: {} }, ['p', 'c1', 'c2'], ['c1', 'c2']);
    await workers.refresh();
    const prompt = { promptTokens: 2000, decodes: 1, positions: 10 };
    expect(workers.place({ ...prompt, decodes: 1 })!.prefill.address).toBe('p');
    expect(workers.place(prompt)!.prefill.address).toBe('c2'); // p is busy
  });

  test('that is no longer listed ends what it has, and is given nothing new', async () => {
    const { workers, place, take, closed } = pool({ p1: {}, p2: {}, d: {} }, ['p1', 'p2'], ['d']);
    await workers.refresh();
    const { prefill } = take();
    expect(prefill.address).toBe('p1');
    workers.setPrefill(['p2']);
    expect(closed).toEqual([]);
    expect([take(), take(), place()].map((placement) => placement?.prefill.address)).toEqual(['p2', 'p2', undefined]);
    prefill.release();
    expect(closed).toEqual(['p1']);
  });
});
