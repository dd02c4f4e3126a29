import fc from 'fast-check';
import { expect, test, vi } from 'vitest';
import type { PlacementRequest } from '../../../services/gateway/workers/worker-pool.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { type Answers, fakePool } from '../../support/fake-pool.ts';

test('workers share work by what is in flight, and take turns when equal', async () => {
  const { workers, take } = fakePool({ p1: {}, p2: {}, d1: {}, d2: {} }, ['p1', 'p2'], ['d1', 'd2']);
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

test('workers that do both keep a request to themselves', async () => {
  const both = ['c1', 'c2'];
  const { workers, take } = fakePool({ c1: {}, c2: {} }, both, both);
  await workers.refresh();
  for (let i = 0; i < 3; i++) {
    const { prefill, decodes } = take(1, 2);
    expect(decodes.map(({ address }) => address)).toEqual([prefill.address, prefill.address]);
  }
});

test('a prompt is computed apart from where it is decoded, unless most of it is cached there', async () => {
  const placed = async () => {
    const { values } = await metrics.prefillPlaced.get();
    return values.map(({ labels, value }) => [labels.where, labels.reason, value]);
  };
  metrics.prefillPlaced.reset();
  const { workers } = fakePool({ p: {}, c: {} }, ['p', 'c'], ['c']);
  await workers.refresh();
  const prompt = { promptTokens: 2000, continues: true, positions: 10 };
  const where = (affinity: Partial<PlacementRequest>) => {
    const { prefill, decode } = workers.place({ ...prompt, ...affinity })!;
    for (const worker of [prefill, decode!]) worker.release();
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

test('a worker that has most of a prompt gets it, unless it has more to do than that saves', async () => {
  const { workers, take } = fakePool({ p1: {}, p2: {}, d: { slots: 9 } }, ['p1', 'p2'], ['d']);
  await workers.refresh();
  const place = (affinityTokens: number) =>
    workers.place({ promptTokens: 400, continues: true, positions: 10, affinityWorker: 'p1', affinityTokens })!.prefill;
  const first = place(0);
  expect(first.address).toBe('p1');
  expect(place(300).address).toBe('p2');
  first.release();
  take(700); // to p1
  expect([place(299).address, place(300).address]).toEqual(['p2', 'p1']);
});

test('a hope for the time per token finds a free slot whose steps keep it, or else the one that comes nearest', async () => {
  const decoder = fc.record({
    slots: fc.integer({ min: 1, max: 4 }),
    busy: fc.nat(4),
    baseMs: fc.integer({ min: 1, max: 50 }),
    eachMs: fc.nat(20),
  });
  const property = fc.asyncProperty(
    fc.array(decoder, { minLength: 1, maxLength: 4 }),
    fc.integer({ min: 1, max: 120 }),
    async (decoders, tpotGoalMs) => {
      const answers = decoders.map(({ slots, busy, baseMs, eachMs }, i) => {
        const stepMs = Array.from({ length: slots }, (_, n) => baseMs + eachMs * (n + 1));
        return [`d${i}`, { slots, freeSlots: Math.max(slots - busy, 0), queued: Math.max(busy - slots, 0), stepMs }];
      });
      const addresses = decoders.map((_, i) => `d${i}`);
      const { workers } = fakePool({ p: {}, ...Object.fromEntries(answers) }, ['p'], addresses);
      await workers.refresh();
      const { decode } = workers.place({ promptTokens: 1, continues: true, positions: 10, tpotGoalMs })!;
      const chosen = decoders[addresses.indexOf(decode!.address)]!;
      const free = decoders.filter(({ busy, slots }) => busy < slots);
      const open = free.length > 0 ? free : decoders;
      expect(open).toContain(chosen);
      const next = ({ slots, busy, baseMs, eachMs }: (typeof decoders)[number]) =>
        baseMs + eachMs * Math.min(busy + 1, slots);
      const keeping = open.filter((each) => next(each) <= tpotGoalMs);
      const quickest = Math.min(...open.map(next));
      const equal = keeping.length > 0 ? keeping : open.filter((each) => next(each) <= 1.1 * quickest);
      expect(equal).toContain(chosen);
      expect(chosen.busy).toBe(Math.min(...equal.map(({ busy }) => busy)));
    },
  );
  await fc.assert(property);
});

test('a size without a measure is that of larger steps, and a worker without any comes after those that keep a hope', async () => {
  const busyWith = (sequences: number, stepMs: number[]) => ({ slots: 4, freeSlots: 4 - sequences, stepMs });
  const chosen = async (one: object, other: object, tpotGoalMs: number) => {
    const { workers } = fakePool({ p: {}, one, other }, ['p'], ['one', 'other']);
    await workers.refresh();
    return workers.place({ promptTokens: 1, continues: true, positions: 10, tpotGoalMs })!.decode!.address;
  };
  expect(await chosen(busyWith(1, [10, 0, 30]), busyWith(2, [10, 10, 20]), 20)).toBe('other');
  expect(await chosen(busyWith(1, [10]), busyWith(2, [10, 10, 20]), 20)).toBe('one');
  expect(await chosen(busyWith(1, [30]), busyWith(2, []), 20)).toBe('other');
  expect(await chosen(busyWith(0, []), busyWith(2, [10, 10, 20]), 20)).toBe('other');
  // One that has made no step for long is idle, and is tried again.
  expect(await chosen(busyWith(0, [0, 0]), busyWith(2, [10, 10, 20]), 20)).toBe('one');
});

test('a hope that no worker keeps leaves a session where its prompt is cached, among workers about as quick', async () => {
  const both = ['c1', 'c2', 'c3'];
  const answers = { c1: { stepMs: [100] }, c2: { stepMs: [108] }, c3: { stepMs: [112] } };
  const { workers } = fakePool(answers, both, both);
  await workers.refresh();
  const placed = (affinityWorker: string) => {
    const prompt = {
      promptTokens: 9,
      continues: true,
      positions: 10,
      affinityWorker,
      affinityTokens: 9,
      tpotGoalMs: 5,
    };
    const { prefill, decode } = workers.place(prompt)!;
    for (const lease of [prefill, decode!]) lease.release();
    return [prefill.address, decode!.address];
  };
  expect([placed('c1'), placed('c2')]).toEqual([
    ['c1', 'c1'],
    ['c2', 'c2'],
  ]);
  expect(placed('c3')[0]).not.toBe('c3');
});

test('a worker that does both is chosen for its steps before the prompt is placed', async () => {
  const both = ['c1', 'c2'];
  const { workers } = fakePool({ c1: { stepMs: [50] }, c2: { freeSlots: 2, stepMs: [5, 6, 7] } }, both, both);
  await workers.refresh();
  const prompt = { promptTokens: 9, continues: true, positions: 10, affinityWorker: 'c1', affinityTokens: 9 };
  const placed = (tpotGoalMs?: number) => {
    const { prefill, decode } = workers.place({ ...prompt, tpotGoalMs })!;
    for (const lease of [prefill, decode!]) lease.release();
    return [prefill.address, decode!.address];
  };
  expect([placed(), placed(10)]).toEqual([
    ['c1', 'c1'],
    ['c2', 'c2'],
  ]);
});

test('a worker that keeps KV in a folder is found by it after a restart at another address', async () => {
  const answers: Answers = { p1: { kvFolder: 'one' }, p2: { kvFolder: 'two' }, p3: {}, d: { slots: 99 } };
  const { workers } = fakePool(answers, ['p1', 'p2', 'p3'], ['d']);
  await workers.refresh();
  const place = (affinity: Partial<PlacementRequest>) => {
    const { prefill, decode } = workers.place({ promptTokens: 400, continues: true, positions: 10, ...affinity })!;
    for (const worker of [prefill, decode!]) worker.release();
    return prefill.address;
  };
  const homes = () => Array.from({ length: 30 }, (_, i) => place({ homeOf: `session ${i}`, homeTokens: 200 }));
  const before = homes();
  expect(new Set(before)).toEqual(new Set(['p1', 'p2', 'p3']));
  answers['p9'] = answers['p1']!;
  delete answers['p1'];
  workers.setPrefill(['p2', 'p3', 'p9']);
  await workers.refresh();
  for (let i = 0; i < 5; i++) expect(place({ affinityWorker: 'p1', affinityTokens: 300 })).toBe('p9');
  expect(homes()).toEqual(before.map((address) => (address === 'p1' ? 'p9' : address)));
  // One that shares the folder has that KV too.
  answers['p2'] = { kvFolder: 'one' };
  delete answers['p9'];
  await workers.refresh();
  for (let i = 0; i < 5; i++) expect(place({ affinityWorker: 'p1', affinityTokens: 300 })).toBe('p2');
});

test('workers are given two prompts at most, and half as many sequences again as they have slots', async () => {
  const { workers, place, take } = fakePool({ p: {}, d: { slots: 2, freeSlots: 2 } }, ['p'], ['d']);
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

test('a worker full of the work of other gateways is still given one sequence', async () => {
  const { workers, place } = fakePool({ p: {}, d: { slots: 2, freeSlots: 0, queued: 9 } }, ['p'], ['d']);
  await workers.refresh();
  expect([place(), place()]).toEqual([expect.anything(), undefined]);
});

test('workers whose slots are too small are left out', async () => {
  const { workers, place } = fakePool({ p: { capacity: 9 }, d: {} }, ['p'], ['d']);
  await workers.refresh();
  expect(place()).toBeUndefined();
});

test('everybody who subscribed to the pool hears of a change, until they unsubscribe', async () => {
  const { workers } = fakePool({ p: {}, d: {} }, ['p'], ['d']);
  const heard: string[] = [];
  const unsubscribe = workers.onChange(() => heard.push('first'));
  workers.onChange(() => heard.push('second'));
  workers.setPrefill([]);
  expect(heard).toEqual(['first', 'second']);
  unsubscribe();
  workers.setDecode([]);
  expect(heard).toEqual(['first', 'second', 'second']);
});

test('a worker that failed a request is not given it again where there are others, whatever it has cached of it', async () => {
  const { workers } = fakePool({ p1: {}, p2: {}, d1: {}, d2: {} }, ['p1', 'p2'], ['d1', 'd2']);
  await workers.refresh();
  const prompt = { promptTokens: 400, continues: true, positions: 10, affinityWorker: 'p1', affinityTokens: 399 };
  const place = (...failed: string[]) => {
    const { prefill, decode } = workers.place({ ...prompt, preferNot: new Set(failed) })!;
    for (const worker of [prefill, decode!]) worker.release();
    return [prefill.address, decode!.address];
  };
  expect(place()).toEqual(['p1', 'd1']);
  expect(place('p1', 'd2')).toEqual(['p2', 'd1']);
  expect(place('p1', 'p2')).toEqual(['p1', 'd2']); // better than none
});

test('a worker that decodes as well and is full does not get the prompts of others', async () => {
  const full = { slots: 4, freeSlots: 0, queued: 6 };
  const { workers } = fakePool({ p: {}, c1: full, c2: {} }, ['p', 'c1', 'c2'], ['c1', 'c2']);
  await workers.refresh();
  const prompt = { promptTokens: 2000, continues: true, positions: 10 };
  expect(workers.place(prompt)!.prefill.address).toBe('p');
  expect(workers.place(prompt)!.prefill.address).toBe('c2'); // p is busy
});

test('answers that come together are one change, and news ask the workers once in 50 ms', async () => {
  const { workers } = fakePool({ p: {}, d1: {}, d2: {}, d3: {} }, ['p'], ['d1', 'd2', 'd3']);
  let changes = 0;
  workers.onChange(() => changes++);
  vi.useFakeTimers();
  try {
    await workers.refresh();
    expect(changes).toBe(1);
    await vi.advanceTimersByTimeAsync(100);
    for (let i = 0; i < 100; i++) {
      workers.refreshSoon();
      await vi.advanceTimersByTimeAsync(1);
    }
    expect([changes > 1, changes <= 4]).toEqual([true, true]);
  } finally {
    vi.useRealTimers();
  }
});

test('a worker with a free slot is chosen before a less loaded one where a sequence would wait', async () => {
  const { workers } = fakePool(
    { p: {}, d1: { slots: 1, freeSlots: 0 }, d2: { slots: 4, freeSlots: 2 } },
    ['p'],
    ['d1', 'd2'],
  );
  await workers.refresh();
  expect(workers.place({ promptTokens: 4, continues: true, positions: 8 })!.decode!.address).toBe('d2');
});

test('two gateways give a session the same home, and a worker that goes moves its own sessions alone', async () => {
  const all = ['p1', 'p2', 'p3'];
  const homes = async (prefill: string[]) => {
    const { workers } = fakePool({ p1: {}, p2: {}, p3: {}, d: { slots: 9 } }, prefill, ['d']);
    await workers.refresh();
    return Array.from({ length: 60 }, (_, i) => {
      const request = { promptTokens: 400, continues: true, positions: 10, homeOf: `s${i}`, homeTokens: 200 };
      const { prefill, decode } = workers.place(request)!;
      for (const worker of [prefill, decode!]) worker.release();
      return prefill.address;
    });
  };
  const [one, two, fewer] = [await homes(all), await homes([...all].reverse()), await homes(['p1', 'p3'])];
  expect(two).toEqual(one);
  expect(new Set(one)).toEqual(new Set(all));
  expect(fewer.filter((home, i) => one[i] !== 'p2' && home !== one[i])).toEqual([]);
});

test('the home of a session gives way to a worker that has less to do than its cache saves', async () => {
  const { workers, take } = fakePool({ p1: {}, p2: {}, d: { slots: 9 } }, ['p1', 'p2'], ['d']);
  await workers.refresh();
  const place = (homeOf: string, homeTokens: number) => {
    const request = { promptTokens: 400, continues: true, positions: 10, homeOf, homeTokens };
    const { prefill, decode } = workers.place(request)!;
    for (const worker of [prefill, decode!]) worker.release();
    return prefill.address;
  };
  const homes = new Map(Array.from({ length: 20 }, (_, i) => [place(`s${i}`, 0), `s${i}`]));
  const busy = take(100).prefill.address;
  const session = homes.get(busy)!;
  expect(place(session, 99)).not.toBe(busy);
  expect(place(session, 100)).toBe(busy);
});
