/** Admission by tokens, on a clock that the test sets. */
import fc from 'fast-check';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { Dispatcher, type DispatcherOptions } from '../../../services/gateway/admission/dispatcher.ts';
import type { DecodeLease, Grant, QueueRequest } from '../../../services/gateway/admission/queued-prompt.ts';
import type { Placement, PlacementRequest } from '../../../services/gateway/workers/worker-pool.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { fakePool } from '../../support/fake-pool.ts';

const preemptions = async () => (await metrics.preemptions.get()).values[0]?.value ?? 0;

/**
 * One prefill worker of `rate` tokens per second that takes `room` prompts at once; time passes when the test says so.
 */
function bench(rate: number, targetTtftMs: number, room = 2, options: Partial<DispatcherOptions> = {}) {
  let nowMs = 0;
  const computing: { tokens: number; done: () => void }[] = [];
  let usable = true;
  let capacity = Infinity;
  const noWorker = () => new ServingError('no_worker', 'none');
  const listeners: (() => void)[] = [];
  const changed = () => {
    for (const listener of listeners) listener();
  };
  const pool = {
    onChange: (listener: () => void) => {
      listeners.push(listener);
      return () => {};
    },
    get usable() {
      return usable;
    },
    assertUsable: () => {
      if (!usable) throw noWorker();
    },
    get prefillBacklog() {
      return computing.reduce((sum, { tokens }) => sum + tokens, 0);
    },
    prefillTokensPerSecond: rate,
    fits: ({ positions }: PlacementRequest) => positions <= capacity,
    place: ({ promptTokens, positions }: PlacementRequest): Placement | undefined => {
      if (!usable || positions > capacity || computing.length >= room) return undefined;
      const job = { tokens: promptTokens, done: () => {} };
      computing.push(job);
      return { prefill: { address: 'p' }, decode: { address: 'd' }, job } as unknown as Placement;
    },
    placeOneMore: () => undefined,
    decodeRoom: () => [],
    slotsFor: () => [],
  };
  const dispatcher = new Dispatcher({
    pool,
    targetTtftMs,
    queueOrder: 'fifo',
    connectTimeoutMs: 5,
    preemptAfterMs: 100,
    spareSlots: 0,
    now: () => nowMs,
    ...options,
  });
  const queued = (promptTokens: number, change: Partial<QueueRequest> = {}): QueueRequest => ({
    promptTokens,
    choices: 1,
    continues: true,
    positions: promptTokens + 16,
    tenant: 'default',
    priority: 0,
    remainingMs: 1e9,
    isReplay: false,
    ...change,
  });
  const ask = (promptTokens: number, change?: Partial<QueueRequest>, signal = new AbortController().signal) =>
    dispatcher.place(queued(promptTokens, change), signal);
  changed();
  return {
    ask,
    computing,
    setCapacity: (positions: number) => {
      capacity = positions;
      changed();
    },
    setUsable: (now: boolean) => {
      usable = now;
      changed();
    },
    /** Ends the computation of the first prompt. */
    finishOne: () => {
      const job = computing.shift();
      if (job) nowMs += (job.tokens / rate) * 1000;
      changed();
    },
    passTime: (ms: number) => {
      nowMs += ms;
    },
    now: () => nowMs,
    waitMs: (tenant = 'default', priority = 0) => dispatcher.waitMs(tenant, priority),
  };
}

const settled = () => new Promise((resolve) => setImmediate(resolve));
const code = (promise: Promise<unknown>) => promise.then(() => 'ok').catch((error: ServingError) => error.code);

describe('the wait that a prompt would have', () => {
  test('it counts what computes and what waits before it, and asking changes nothing', async () => {
    const { ask, waitMs } = bench(100, 10_000);
    expect(waitMs()).toBe(0);
    const asked = [ask(50), ask(40)]; // both compute
    expect([waitMs(), waitMs()]).toEqual([900, 900]);
    void ask(30);
    expect(waitMs()).toBe(1200);
    expect(waitMs('default', -1)).toBe(900); // it would go before the one that waits
    await Promise.all(asked);
  });

  test('it is that of the tenant: one that fills the queue does not make another one wait', () => {
    const { ask, waitMs } = bench(100, 10_000);
    for (let i = 0; i < 10; i++) void ask(50, { tenant: 'flood' });
    expect(waitMs('flood')).toBe(5000);
    expect(waitMs('other')).toBeLessThan(2000);
  });
});

describe('admission', () => {
  test('prompts are admitted that can be computed within the target, and others are told when to come back', async () => {
    const { ask } = bench(100, 1000);
    const asked = [ask(50), ask(40), ask(10)];
    const refused = ask(1);
    await expect(refused).rejects.toMatchObject({ code: 'saturated', limit: 'target-ttft-ms', retryAfterSeconds: 1 });
    expect(await Promise.all(asked.slice(0, 2).map(code))).toEqual(['ok', 'ok']);
  });

  test('a place is reserved at the check: a burst does not pass together', async () => {
    const { ask } = bench(100, 1000);
    const answers = Array.from({ length: 30 }, () => code(ask(10)));
    await settled();
    const refused = (await Promise.race([Promise.all(answers.slice(10)), settled()])) as string[];
    expect(refused).toEqual(Array.from({ length: 20 }, () => 'saturated'));
  });

  test('any one prompt is admitted when nothing else is there', async () => {
    const { ask } = bench(100, 1000);
    expect(await code(ask(5000))).toBe('ok');
    await expect(ask(10)).rejects.toMatchObject({ code: 'saturated', retryAfterSeconds: 50 });
  });

  test('a prompt that could not be served within its own budget is refused', async () => {
    const { ask } = bench(100, 10_000);
    await ask(100);
    await expect(ask(100, { remainingMs: 1500 })).rejects.toMatchObject({ code: 'saturated', limit: 'timeout-ms' });
    expect(await code(ask(100, { remainingMs: 2500 }))).toBe('ok');
  });

  test('a flood does not keep out a prompt of another tenant whose turn comes in time', async () => {
    const { ask, finishOne, computing } = bench(100, 10_000);
    const flood = Array.from({ length: 9 }, () => code(ask(100, { tenant: 'flood' })));
    const calm = code(ask(50, { tenant: 'calm', remainingMs: 4000 }));
    await expect(ask(50, { tenant: 'flood', remainingMs: 4000 })).rejects.toMatchObject({ limit: 'timeout-ms' });
    finishOne();
    expect(computing.map(({ tokens }) => tokens)).toEqual([100, 50]);
    expect(await calm).toBe('ok');
    while (computing.length > 0) finishOne();
    await Promise.all(flood);
  });

  test('cached tokens of a prompt do not count', async () => {
    const { ask } = bench(100, 1000);
    await ask(50);
    const typed = { affinityWorker: 'p', affinityTokens: 990, remainingMs: 700 };
    expect(await code(ask(1000, typed))).toBe('ok');
    expect(await code(ask(1000, { ...typed, affinityWorker: undefined }))).toBe('saturated');
  });

  test('replayed prompts, which go first, count as well', async () => {
    const { ask, setUsable } = bench(100, 1000);
    setUsable(false);
    const again = code(ask(95, { isReplay: true }));
    const first = code(ask(1)); // any one prompt is taken while nothing waits or computes
    expect(await code(ask(10))).toBe('saturated');
    setUsable(true);
    expect([await again, await first]).toEqual(['ok', 'ok']);
  });

  test('without a worker prompts are refused, after a moment in which one may come back', async () => {
    const { ask, setUsable, passTime } = bench(100, 1000);
    expect(await code(ask(1))).toBe('ok');
    setUsable(false);
    const waiting = ask(1); // for a moment
    setUsable(true);
    expect(await code(waiting)).toBe('ok');
    setUsable(false);
    expect(await code(ask(1))).toBe('no_worker');
    passTime(5);
    expect(await code(ask(1))).toBe('no_worker');
  });

  test('the next prompt of a request may wait as long as the request, however long its prompts are together', async () => {
    const { ask, finishOne } = bench(100, 1000, 1);
    expect(await code(ask(90))).toBe('ok');
    const sibling = code(ask(90, { sibling: true }));
    expect(await code(ask(90))).toBe('saturated');
    expect(await code(ask(90, { sibling: true, remainingMs: 1000 }))).toBe('saturated');
    finishOne();
    expect(await sibling).toBe('ok');
  });

  test('a tenant is charged for the output that may follow as well', async () => {
    const { ask, finishOne, computing } = bench(100, 1e6, 1);
    await ask(1, { tenant: 'other' });
    const long = { tenant: 'long', positions: 300 };
    const asked = [ask(10, long), ask(10, long), ...[1, 2, 3].map(() => ask(100, { tenant: 'one' }))];
    const order: number[] = [];
    for (finishOne(); computing.length > 0; finishOne()) order.push(computing[0]!.tokens);
    expect(order).toEqual([10, 100, 100, 100, 10]);
    await Promise.all(asked);
  });

  test('a tenant that floods pays for it', async () => {
    const { ask, finishOne } = bench(100, 1000);
    const flood = Array.from({ length: 10 }, () => code(ask(10, { tenant: 'flood' })));
    const calm = ask(10, { tenant: 'calm' });
    expect(await flood.at(-1)).toBe('saturated');
    finishOne();
    expect(await code(calm)).toBe('ok');
  });

  test('slow decode lowers the number of tokens that may wait', async () => {
    const { ask, finishOne, passTime } = bench(100, 1000, 1);
    const asked = Array.from({ length: 6 }, () => ask(10));
    for (let i = 0; i < 4; i++) {
      passTime(900); // at 100 tokens/s there would have been room long ago
      finishOne();
    }
    await Promise.all(asked.slice(0, 5));
    expect(await code(ask(10))).toBe('saturated'); // at 10/s two are too many; at 100/s nine would have been fine
  });
});

test('an outage in which all waited does not count in the rate of service', async () => {
  const { ask, setUsable, passTime, computing, finishOne } = bench(500, 10_000);
  setUsable(false);
  const asked = Array.from({ length: 12 }, () => ask(200));
  passTime(1900);
  setUsable(true);
  expect(computing.length).toBe(2);
  const late = code(ask(200)); // 2,400 tokens before it: 4.8 s
  while (computing.length > 0) finishOne();
  expect(await late).toBe('ok');
  await Promise.all(asked);
});

describe('the queue', () => {
  test('the queue is served in the order that was set', async () => {
    const { ask, finishOne, computing } = bench(100, 10_000, 1, { queueOrder: 'shortest-first' });
    await ask(1);
    const waiting = [ask(300), ask(20), ask(10)];
    const order: (number | undefined)[] = [];
    for (const _ of waiting) {
      finishOne();
      order.push(computing[0]?.tokens);
    }
    expect(order).toEqual([10, 20, 300]);
    await Promise.all(waiting);
  });

  test('a client that hangs up makes room, and is not served', async () => {
    const { ask, finishOne, computing } = bench(100, 1000);
    await Promise.all([ask(10), ask(10)]);
    const gone = new AbortController();
    const left = ask(70, {}, gone.signal);
    expect(await code(ask(20))).toBe('saturated');
    gone.abort(new ServingError('client_gone', 'bye'));
    expect(await code(left)).toBe('client_gone');
    const next = ask(20);
    finishOne();
    await next;
    expect(computing.map(({ tokens }) => tokens)).toEqual([10, 20]);
  });

  test('a prompt that fits no worker any more is refused, and nobody waits behind it', async () => {
    const { ask, finishOne, setCapacity } = bench(100, 10_000);
    await Promise.all([ask(10), ask(10)]);
    const long = code(ask(400));
    const longAgain = code(ask(400, { isReplay: true }));
    const short = ask(10);
    setCapacity(100);
    finishOne();
    await short;
    expect([await long, await longAgain]).toEqual(['no_worker', 'no_worker']);
  });

  test('a replayed prompt goes first, beyond the bound, and waits for a worker', async () => {
    const { ask, finishOne, computing, setUsable } = bench(100, 1000);
    await Promise.all([ask(50), ask(50)]);
    const again = ask(500, { isReplay: true });
    finishOne();
    await again;
    expect(computing.map(({ tokens }) => tokens)).toEqual([50, 500]);
    finishOne();
    finishOne();
    setUsable(false);
    const patient = ask(1, { isReplay: true });
    setUsable(true);
    await patient;
    setUsable(false);
    expect(await code(ask(1, { isReplay: true }))).toBe('no_worker');
  });
});

test('goodput stays at ten times the load that can be served', async () => {
  /**
   * Prompts of 100 tokens at `load` times what 1000 tokens/s can serve, for 60 s; those that had their workers in time.
   */
  async function goodput(load: number): Promise<number> {
    const { ask, finishOne, computing, passTime, now } = bench(1000, 1000);
    let good = 0;
    let next = 0;
    const everyMs = 100 / load;
    while (now() < 60_000) {
      for (; next * everyMs <= now(); next++) {
        const arrivedMs = next * everyMs;
        ask(100).then(
          // It still computes when it is placed, behind at most one other.
          () => now() - arrivedMs <= 1000 && good++,
          () => {},
        );
      }
      await settled();
      if (computing.length > 0) finishOne();
      else passTime(everyMs);
    }
    return good;
  }
  const peak = await goodput(0.95);
  expect(peak).toBeGreaterThan(540);
  expect(await goodput(10)).toBeGreaterThanOrEqual(0.9 * peak);
});

/** Grants on a real pool of workers that do nothing: sequences end when the test says so. */
async function onWorkers(slots: readonly number[], options: Partial<DispatcherOptions> = {}) {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const addresses = slots.map((_, i) => `d${i}`);
  const answers = Object.fromEntries(slots.map((count, i) => [`d${i}`, { slots: count, freeSlots: count }]));
  const { workers } = fakePool({ p: {}, ...answers }, ['p'], addresses);
  await workers.refresh();
  const dispatcher = new Dispatcher({
    pool: workers,
    targetTtftMs: 1e9,
    queueOrder: 'fifo',
    connectTimeoutMs: 5,
    preemptAfterMs: 100,
    spareSlots: 0,
    ...options,
  });
  /** Sequences that run, in the order in which they were placed. */
  const running: { name: string; tenant: string; lease: DecodeLease; enteredMs: number }[] = [];
  const failures: unknown[] = [];
  let granted = 0;
  /** Sequences that were granted for the first time, by tenant: those that the tenant was charged for. */
  const served = new Map<string, number>();
  const follow = async (placing: Promise<Grant> | undefined, name: string, tenant: string, isNew: boolean) => {
    for (let next = placing; next; ) {
      const grant: Grant = await next;
      grant.prefill.release();
      granted += grant.choices;
      if (isNew) served.set(tenant, (served.get(tenant) ?? 0) + grant.choices);
      for (const lease of grant.decodes) running.push({ name, tenant, lease, enteredMs: grant.enteredMs });
      next = grant.next;
    }
  };
  const place = (tenant: string, choices: number, change: Partial<QueueRequest> = {}, signal?: AbortSignal) => {
    const wants = { promptTokens: 4, positions: 20, continues: true, priority: 0, remainingMs: 1e9, isReplay: false };
    return dispatcher.place({ ...wants, tenant, choices, ...change }, signal ?? new AbortController().signal);
  };
  const ask = (
    tenant: string,
    choices: number,
    change: Partial<QueueRequest> = {},
    name = tenant,
    signal?: AbortSignal,
  ) => {
    const placing = place(tenant, choices, change, signal);
    return follow(placing, name, tenant, change.enteredMs === undefined).catch((error) => void failures.push(error));
  };
  /** Lets what was aborted come back to the queue, as a completion does. */
  const settle = async () => {
    await vi.advanceTimersByTimeAsync(0);
    for (const gone of running.filter(({ lease }) => lease.preempted.aborted)) {
      running.splice(running.indexOf(gone), 1);
      granted--;
      gone.lease.release();
      void ask(gone.tenant, 1, { enteredMs: gone.enteredMs }, gone.name);
    }
    await vi.advanceTimersByTimeAsync(0);
  };
  return {
    ask,
    place,
    running,
    served: (tenant: string) => served.get(tenant) ?? 0,
    failures,
    settle,
    granted: () => granted,
    held: (tenant: string) => running.filter((each) => each.tenant === tenant).length,
    end: async (index: number) => {
      running.splice(index, 1)[0]?.lease.release();
      await settle();
    },
    pass: async (ms: number) => {
      await vi.advanceTimersByTimeAsync(ms);
      await settle();
    },
    placedOn: (address: string) => running.filter(({ lease }) => lease.address === address).length,
  };
}

describe('sequences', () => {
  test('every sequence is granted once, in any order of ends and arrivals, and no worker has more than it takes', async () => {
    const asked = fc.record({ tenant: fc.constantFrom('a', 'b', 'c'), choices: fc.integer({ min: 1, max: 9 }) });
    await fc.assert(
      fc.asyncProperty(
        fc.array(asked, { maxLength: 8 }),
        fc.array(fc.integer({ min: 0, max: 100 }), { maxLength: 30 }),
        fc.nat(1),
        async (prompts, ends, spareSlots) => {
          const bench = await onWorkers([2, 4], { spareSlots });
          const total = prompts.reduce((sum, { choices }) => sum + choices, 0);
          const check = () => {
            expect(bench.placedOn('d0')).toBeLessThanOrEqual(3);
            expect(bench.placedOn('d1')).toBeLessThanOrEqual(6);
          };
          for (const { tenant, choices } of prompts) {
            void bench.ask(tenant, choices);
            await bench.pass(ends.length);
            check();
          }
          for (const end of ends) {
            if (bench.running.length > 0) await bench.end(end % bench.running.length);
            await bench.pass(30);
            check();
          }
          while (bench.running.length > 0) {
            await bench.end(0);
            check();
          }
          expect([bench.granted(), bench.failures]).toEqual([total, []]);
        },
      ),
      { numRuns: 100 },
    );
  });

  test('sequences that find no room wait on and get the slots that come free, in turn with other tenants', async () => {
    const { ask, running, end, settle } = await onWorkers([2], { preemptAfterMs: 1e6 });
    void ask('many', 5, { positions: 20 });
    await settle();
    expect(running.map(({ name }) => name)).toEqual(['many', 'many', 'many']);
    void ask('other', 2, { positions: 20 });
    await settle();
    const later: string[] = [];
    for (let i = 0; i < 4; i++) {
      await end(0);
      await end(0); // a free slot, not only a place in the worker's queue: `other` waits for one
      later.push(...running.map(({ name }) => name));
    }
    expect(later).toContain('other');
  });

  test('a tenant with less than its share gets slots of the one that has more, after a moment, and no more than half', async () => {
    const before = await preemptions();
    const { ask, held, pass, end, running, granted } = await onWorkers([4]);
    void ask('many', 9);
    await pass(0);
    expect([held('many'), held('few')]).toEqual([6, 0]); // two of them wait in the worker
    void ask('few', 3);
    await pass(99);
    expect([held('many'), held('few')]).toEqual([6, 0]);
    await pass(1);
    await pass(0);
    expect(held('few')).toBeGreaterThanOrEqual(2);
    expect(
      running
        .filter(({ lease }) => !lease.preempted.aborted)
        .slice(0, 2)
        .map(({ name }) => name),
    ).toEqual(['many', 'many']);
    await pass(10_000);
    const taken = (await preemptions()) - before;
    expect(taken).toBeLessThanOrEqual(4);
    while (running.length > 0) await end(0);
    expect(granted()).toBe(12);
    expect((await preemptions()) - before).toBe(taken);
  });

  test('a tenant alone is never made to wait, whatever it asks for', async () => {
    const before = await preemptions();
    const { ask, held, pass } = await onWorkers([4]);
    void ask('one', 9);
    void ask('one', 9);
    await pass(10_000);
    expect(held('one')).toBe(6);
    expect(await preemptions()).toBe(before);
  });

  test('where slots are left free the tenants are counted once, not for each prompt that waits', async () => {
    let counted = 0;
    const weightOf = () => {
      counted++;
      return 1;
    };
    const { ask, end, held } = await onWorkers([16], { spareSlots: 1, weightOf });
    for (let i = 0; i < 100; i++) {
      void ask(`tenant-${i}`, 1);
      await vi.advanceTimersByTimeAsync(0);
      await end(0);
    }
    for (let i = 0; i < 100; i++) void ask('many', 1);
    await vi.advanceTimersByTimeAsync(0);
    expect(held('many')).toBe(15);
    counted = 0;
    void ask('many', 1);
    await vi.advanceTimersByTimeAsync(0);
    // Once for each tenant and a few times for each prompt; all tenants for each prompt would be some 9,000.
    expect(counted).toBeLessThan(1_000);
  });

  test('a slot that was made free goes to the prompt that it was made free for', async () => {
    const { ask, held, pass } = await onWorkers([2]);
    void ask('first', 4);
    await pass(0);
    void ask('second', 1, { positions: 90 });
    await pass(100);
    await pass(0);
    expect(held('second')).toBe(1);
  });

  test('when a prompt that others make way for leaves, they come back', async () => {
    const { ask, held, pass, failures } = await onWorkers([2]);
    void ask('first', 4);
    await pass(0);
    const gone = new AbortController();
    void ask('second', 1, {}, 'second', gone.signal);
    await vi.advanceTimersByTimeAsync(100);
    gone.abort(new ServingError('client_gone', 'bye'));
    await pass(0);
    await pass(0);
    expect([held('first'), failures.length]).toEqual([3, 1]);
  });

  test('a prompt that needs no slot does not wait behind one that others make way for', async () => {
    const { ask, served, held, pass } = await onWorkers([4]);
    void ask('many', 6);
    await pass(0);
    void ask('wide', 64);
    await vi.advanceTimersByTimeAsync(100);
    void ask('short', 3, { continues: false });
    void ask('wide', 2, { continues: false }); // behind one of its own tenant
    await vi.advanceTimersByTimeAsync(0);
    expect([held('wide'), served('short'), served('wide')]).toEqual([0, 3, 2]); // nothing has left its worker yet
    await pass(0);
    void ask('short', 3, { continues: false });
    await pass(0);
    expect([held('wide'), served('short')]).toEqual([2, 6]);
  });

  test('prompts that need no slot and keep prefill busy do not stop others from making way', async () => {
    const { ask, place, held, pass } = await onWorkers([4]);
    void ask('many', 6);
    await pass(0);
    void ask('wide', 64);
    const computing: Grant[] = [];
    const flood = async () => {
      for (;;) computing.push(await place('flood', 1, { continues: false }));
    };
    for (let i = 0; i < 4; i++) void flood();
    for (let ms = 0; ms < 110; ms++) {
      await pass(1);
      computing.shift()?.prefill.release();
    }
    expect(computing.length).toBeGreaterThan(0);
    expect(held('wide')).toBe(2);
  });

  test('a prompt goes first for as many slots as were made free for it, and then takes turns with all', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(5), { minLength: 24, maxLength: 24 }), async (ends) => {
        const before = await preemptions();
        const { ask, served, pass, end, running } = await onWorkers([4]);
        const tenants = ['many', 'wide', 'third'];
        void ask('many', 64);
        await pass(0);
        void ask('wide', 64);
        await pass(100);
        void ask('third', 64);
        await pass(0);
        const start = tenants.map(served);
        for (const index of ends) {
          await end(index % running.length);
          const since = tenants.map((tenant, i) => served(tenant) - start[i]!);
          // At most one sequence each, as in any fair queue, and those that made way.
          const bound = 2 + (await preemptions()) - before;
          expect(Math.max(...since) - Math.min(...since)).toBeLessThanOrEqual(bound);
        }
        expect(served('third')).toBeGreaterThan(0);
      }),
      { numRuns: 30 },
    );
  });
});
