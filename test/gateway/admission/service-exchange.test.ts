/** Fairness between tenants over several gateways: real queues over one set of workers, on a clock of the test. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Dispatcher } from '../../../services/gateway/admission/dispatcher.ts';
import { NEWS_EVERY_MS, ServiceExchange, type SlotNews } from '../../../services/gateway/admission/service-exchange.ts';
import type { Placement } from '../../../services/gateway/workers/worker-pool.ts';

/** Prompts that the workers compute at once, time of one, and those that a gateway may have there at once. */
const ROOM = 4;
const SERVICE_MS = 40;

/**
 * Gateways over one set of workers that compute `ROOM` prompts at once.
 * @param roomOfEach prompts that one gateway may have there.
 * @param delayMs of the news.
 */
function system(
  gateways: number,
  {
    weights = {},
    roomOfEach = ROOM,
    delayMs = 5,
    connected = true,
  }: {
    weights?: Record<string, number>;
    roomOfEach?: number;
    delayMs?: number;
    connected?: boolean;
  },
) {
  const weightOf = (tenant: string) => weights[tenant] ?? 1;
  let nowMs = 0;
  const events: { atMs: number; run: () => void }[] = [];
  const after = (ms: number, run: () => void) => events.push({ atMs: nowMs + ms, run });
  const listeners: (() => void)[] = [];
  let computing = 0;
  const served = new Map<string, number>();
  let messages = 0;
  const members = Array.from({ length: gateways }, (_, number) => {
    let own = 0;
    const pool = {
      onChange: (listener: () => void) => {
        listeners.push(listener);
        return () => {};
      },
      usable: true,
      assertUsable: () => {},
      prefillBacklog: 0,
      prefillTokensPerSecond: 0,
      fits: () => true,
      placeOneMore: () => undefined,
      decodeRoom: () => [],
      slotsFor: () => [],
      reaches: true,
      place: (): Placement | undefined => {
        if (!pool.reaches || computing >= ROOM || own >= roomOfEach) return undefined;
        computing++;
        own++;
        after(SERVICE_MS, () => {
          computing--;
          own--;
          // Whoever hears first of the room takes it.
          const first = Math.floor(nowMs * 7) % listeners.length;
          for (let i = 0; i < listeners.length; i++) listeners[(first + i) % listeners.length]!();
        });
        return { prefill: { address: 'w' } } as Placement;
      },
    };
    const exchange: ServiceExchange = new ServiceExchange({
      weightOf,
      now: () => nowMs,
      charge: (costs) => dispatcher.charge(costs),
      waiting: () => dispatcher.waitingTenants,
      slots: () => dispatcher.slotNews,
      after,
      self: `gw${number}`,
      publish: (news) => {
        messages++;
        const text = JSON.stringify(news);
        for (const other of members) {
          if (other === member || !connected) continue;
          after(delayMs, () => other.exchange.heard(`gw${number}`, JSON.parse(text)));
        }
      },
    });
    const dispatcher: Dispatcher = new Dispatcher({
      pool,
      weightOf,
      targetTtftMs: 1e9,
      queueOrder: 'fifo',
      connectTimeoutMs: 5,
      preemptAfterMs: 1e9,
      spareSlots: 0,
      exchange,
      now: () => nowMs,
    });
    const member = { exchange, dispatcher, pool, number };
    const tick = () => {
      exchange.tick();
      after(NEWS_EVERY_MS, tick);
    };
    after((number * NEWS_EVERY_MS) / gateways, tick);
    return member;
  });
  /** Keeps prompts of a tenant waiting at a gateway, each of them with this cost. */
  const flood = (gateway: number, tenant: string, promptTokens = 100) => {
    const ask = () => {
      const prompt = {
        promptTokens,
        continues: true,
        choices: 1,
        positions: promptTokens + 100,
        tenant,
        priority: 0,
        remainingMs: 1e9,
        isReplay: false,
      };
      void members[gateway]!.dispatcher.place(prompt, new AbortController().signal).then(() => {
        served.set(tenant, (served.get(tenant) ?? 0) + promptTokens + 100);
        ask();
      });
    };
    for (let i = 0; i < 3 * ROOM; i++) ask();
  };
  const run = async (ms: number) => {
    const untilMs = nowMs + ms;
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      events.sort((a, b) => a.atMs - b.atMs);
      const next = events[0];
      if (next === undefined || next.atMs > untilMs) break;
      events.shift();
      nowMs = next.atMs;
      next.run();
    }
    nowMs = untilMs;
  };
  const shareOf = (tenant: string) =>
    (served.get(tenant) ?? 0) / [...served.values()].reduce((sum, cost) => sum + cost, 0);
  /** Share of the workers' time that was used. */
  const used = (ms: number) =>
    [...served.values()].reduce((sum, cost) => sum + cost, 0) / ((ms / SERVICE_MS) * ROOM * 200);
  return { members, flood, run, served, shareOf, used, messages: () => messages };
}

describe('two gateways over the same workers', () => {
  test('a tenant at one gateway gets its half beside one that floods both, and the workers stay busy', async () => {
    const { flood, run, shareOf, used } = system(2, {});
    flood(0, 'a');
    flood(1, 'a');
    flood(1, 'b');
    await run(40_000);
    expect(shareOf('b')).toBeGreaterThan(0.45);
    expect(shareOf('b')).toBeLessThan(0.55);
    expect(used(40_000)).toBeGreaterThan(0.97);
  });

  test('without news of each other the tenant at both gateways would get more: this is what the news change', async () => {
    const { flood, run, shareOf } = system(2, { connected: false });
    flood(0, 'a');
    flood(1, 'a');
    flood(1, 'b');
    await run(40_000);
    expect(shareOf('b')).toBeLessThan(0.35);
  });

  test('tenants get shares by their weights, at whichever gateways they are, counted in tokens', async () => {
    const { flood, run, shareOf, used } = system(2, { weights: { b: 3 } });
    flood(0, 'a', 300);
    flood(1, 'a', 50);
    flood(1, 'b');
    await run(40_000);
    expect(shareOf('b')).toBeGreaterThan(0.7);
    expect(shareOf('b')).toBeLessThan(0.8);
    expect(used(40_000)).toBeGreaterThan(0.9);
  });

  test('tenants that never meet at a gateway share as if they did', async () => {
    const { flood, run, shareOf } = system(2, { weights: { b: 4 } });
    flood(0, 'a');
    flood(1, 'b');
    await run(40_000);
    expect(shareOf('b')).toBeGreaterThan(0.75);
    expect(shareOf('b')).toBeLessThan(0.85);
  });

  test('a gateway that has lost the workers delays the others once, not again and again', async () => {
    const { members, flood, run, used } = system(2, {});
    members[1]!.pool.reaches = false;
    flood(0, 'a');
    flood(1, 'b');
    await run(40_000);
    expect(used(40_000)).toBeGreaterThan(0.95);
  });

  test('a tenant that comes back is not made to pay for what it was served while nobody else waited', async () => {
    const { flood, run, served } = system(2, {});
    flood(0, 'a');
    await run(40_000);
    const before = served.get('a')!;
    flood(1, 'b');
    await run(20_000);
    const [a, b] = [served.get('a')! - before, served.get('b')!];
    expect(b / (a + b)).toBeGreaterThan(0.44);
    expect(b / (a + b)).toBeLessThan(0.56);
  });

  test('gateways say nothing while there is nothing to say', async () => {
    const { members, run, messages } = system(2, {});
    await run(10_000);
    expect(messages()).toBe(0);
    await members[0]!.dispatcher.place(
      {
        promptTokens: 1,
        continues: true,
        choices: 1,
        positions: 2,
        tenant: 'a',
        priority: 0,
        remainingMs: 1e9,
        isReplay: false,
      },
      new AbortController().signal,
    );
    await run(10_000);
    expect(messages()).toBe(4); // what was served is told again for a second
  });
});

test('five gateways, and tenants at some of them: each gets its share', async () => {
  const { flood, run, shareOf } = system(5, { roomOfEach: 2 });
  for (const gateway of [0, 1, 2, 3, 4]) flood(gateway, 'a');
  for (const gateway of [0, 1]) flood(gateway, 'b');
  for (const gateway of [3, 4]) flood(gateway, 'c');
  await run(40_000);
  for (const tenant of ['a', 'b', 'c']) {
    expect(shareOf(tenant)).toBeGreaterThan(0.28);
    expect(shareOf(tenant)).toBeLessThan(0.39);
  }
});

test('news of a wrong form are passed over', () => {
  const charged: unknown[] = [];
  const exchange = new ServiceExchange({
    weightOf: () => 1,
    publish: () => {},
    charge: (costs) => charged.push(costs),
    waiting: () => new Set(),
    slots: () => ({ held: [], blocked: [] }),
    after: () => {},
    self: 'a',
  });
  for (const body of [
    null,
    1,
    {},
    { served: [], waiting: [1] },
    { served: [['a', -1]], waiting: [] },
    { served: [['a', '1']], waiting: [] },
    { served: [['a', 1]], waiting: Array(1_001).fill('a') },
    { served: [], waiting: [], totals: [['a', 1]] },
    { served: [], waiting: [], totals: [['a', 1, -1]] },
    { waiting: [], totals: [['a', 1, 0]] },
    { served: [], waiting: [], held: [['a', 'd', 0, 0]] },
    { served: [], waiting: [], held: [['a', 'd', 1, -1]] },
    { served: [], waiting: [], held: [['a', 'd', 1]] },
    { served: [], waiting: [], blocked: [['a', 1, 1, -1]] },
    { served: [], waiting: [], blocked: [['a', 1, 1.5, 0]] },
  ]) {
    exchange.heard('x', body);
  }
  expect(charged).toEqual([]);
});

test('what does not fit into one message is told with the next', () => {
  const told: string[][] = [];
  const exchange = new ServiceExchange({
    weightOf: () => 1,
    publish: ({ totals }) => told.push(totals.map(([tenant]) => tenant)),
    charge: () => {},
    waiting: () => new Set(),
    slots: () => ({ held: [], blocked: [] }),
    after: () => {},
    self: 'a',
  });
  const tenants = Array.from({ length: 1_500 }, (_, i) => `t${i}`);
  for (const tenant of tenants) exchange.served(tenant, 1);
  for (let i = 0; i < 3; i++) exchange.tick();
  expect(told.map(({ length }) => length)).toEqual([1_000, 1_000, 1_000]);
  expect(told.flat().slice(0, 1_500)).toEqual(tenants);
});

describe('news of slots', () => {
  /** An exchange that hears what the test says, on a clock of the test. */
  function listening() {
    let nowMs = 0;
    const told: unknown[] = [];
    const later: { atMs: number; task: () => void }[] = [];
    const slots: { -readonly [K in keyof SlotNews]: SlotNews[K] } = { held: [['own', 'd0', 2, 1]], blocked: [] };
    const exchange = new ServiceExchange({
      weightOf: () => 1,
      publish: (news) => told.push(news),
      charge: () => {},
      waiting: () => new Set(),
      slots: () => slots,
      after: (ms, task) => later.push({ atMs: nowMs + ms, task }),
      self: 'b',
      now: () => nowMs,
    });
    const pass = (ms: number) => {
      nowMs += ms;
      while (later.length > 0 && later[0]!.atMs <= nowMs) later.shift()!.task();
    };
    return { exchange, told, pass, slots };
  }
  const NEWS = { served: [], waiting: ['t'], held: [['t', 'd0', 3, 2]], blocked: [['t', 5, 40, 120]] };

  test('what another gateway lacks counts for a second, and what its tenants hold for three, though news are lost', () => {
    const { exchange, pass } = listening();
    exchange.heard('a', NEWS);
    exchange.heard('c', { ...NEWS, blocked: [] });
    pass(900);
    const held = { tenant: 't', address: 'd0', sequences: 3, movable: 2 };
    expect(exchange.heldElsewhere).toEqual([
      { ...held, first: true },
      { ...held, first: false },
    ]);
    expect([exchange.sequencesElsewhere('d0'), exchange.sequencesElsewhere('d1')]).toEqual([6, 0]);
    expect(exchange.blockedElsewhere).toEqual([
      { gateway: 'a', tenant: 't', sequences: 5, positions: 40, forMs: 1_020 },
    ]);
    pass(100);
    const counts = () => [exchange.heldElsewhere.length, exchange.blockedElsewhere, exchange.sequencesElsewhere('d0')];
    expect(counts()).toEqual([2, [], 0]);
    pass(1_999);
    exchange.tick();
    expect(counts()).toEqual([2, [], 0]);
    pass(1);
    expect(counts()).toEqual([0, [], 0]);
  });

  test('a gateway that holds nothing any more says so in four ticks, since news may be lost, and then nothing', () => {
    const { exchange, told, slots } = listening();
    exchange.tick();
    slots.held = [];
    told.length = 0;
    for (let i = 0; i < 6; i++) exchange.tick();
    expect(told).toEqual(Array(4).fill({ totals: [], served: [], waiting: [], held: [], blocked: [] }));
    slots.held = [['own', 'd0', 1, 0]];
    exchange.tick();
    expect(told).toHaveLength(5);
  });

  test('a tenant that lacks slots is heard and told also where nobody holds any or waits in the queue', () => {
    const { exchange } = listening();
    exchange.heard('a', { ...NEWS, waiting: [], held: [] });
    expect(exchange.blockedElsewhere).toHaveLength(1);
    const told: unknown[] = [];
    const blocked = [['t', 1, 40, 120]] as const;
    const telling = new ServiceExchange({
      weightOf: () => 1,
      publish: (news) => told.push(news),
      charge: () => {},
      waiting: () => new Set(),
      slots: () => ({ held: [], blocked }),
      after: () => {},
      self: 'b',
    });
    telling.tick();
    expect(told).toEqual([{ totals: [], served: [], waiting: [], held: [], blocked }]);
  });

  test('a gateway of version 0.1, which says nothing of slots, is heard', () => {
    const { exchange } = listening();
    exchange.heard('a', { served: [], waiting: ['t'] });
    expect([exchange.heldElsewhere, exchange.blockedElsewhere]).toEqual([[], []]);
  });

  test('the end of a sequence is told before the next tick where a tenant lacks slots elsewhere, every 25 ms at most', () => {
    const { exchange, told, pass } = listening();
    exchange.freed();
    expect(told).toEqual([]);
    exchange.heard('a', NEWS);
    for (let i = 0; i < 10; i++) {
      exchange.freed();
      pass(10);
    }
    expect(told.length).toBe(4);
    pass(25);
    exchange.freed();
    expect(told.length).toBe(5);
    expect(told[0]).toEqual({ totals: [], served: [], waiting: [], held: [['own', 'd0', 2, 1]], blocked: [] });
  });

  test('what comes too soon after the last news is told once, as soon as may be', () => {
    const { exchange, told, pass } = listening();
    exchange.tick();
    exchange.lacksSlots();
    exchange.lacksSlots();
    pass(24);
    expect(told.length).toBe(1);
    pass(1);
    expect(told.length).toBe(2);
    pass(1_000);
    expect(told.length).toBe(2);
  });
});

describe('what a gateway has served', () => {
  type News = Parameters<ConstructorParameters<typeof ServiceExchange>[0]['publish']>[0];

  /** An exchange on a clock of the test: what it tells, and what it charges for what it hears, by tenant. */
  function gateway(self: string, now: () => number) {
    const told: News[] = [];
    const charged = new Map<string, number>();
    const exchange = new ServiceExchange({
      weightOf: () => 1,
      publish: (news) => told.push(JSON.parse(JSON.stringify(news))),
      charge: (costs) => {
        for (const [tenant, cost] of costs) charged.set(tenant, (charged.get(tenant) ?? 0) + cost);
      },
      waiting: () => new Set(),
      slots: () => ({ held: [], blocked: [] }),
      after: () => {},
      self,
      now,
    });
    return { exchange, told, charged };
  }

  test('what it has served is charged once elsewhere, however many news are lost in a second, repeated or late', () => {
    const serve = fc.record({ tenant: fc.constantFrom('x', 'y', 'z'), cost: fc.integer({ min: 0, max: 500 }) });
    const interval = fc.record({
      served: fc.array(serve, { maxLength: 4 }),
      // The news of an interval are heard after so many more, and again after so many more; undefined: never.
      hears: fc.array(fc.nat(8), { maxLength: 3 }),
    });
    fc.assert(
      fc.property(fc.array(interval, { minLength: 1, maxLength: 40 }), (intervals) => {
        let nowMs = 0;
        const [from, to] = [gateway('a', () => nowMs), gateway('b', () => nowMs)];
        const served = new Map<string, number>();
        const underWay: { at: number; news: News }[] = [];
        // The news of every fourth interval come at once: no more than three in a row are lost or late.
        for (let i = 0; i < intervals.length + 12; i++, nowMs += NEWS_EVERY_MS) {
          const { served: costs, hears } = intervals[i] ?? { served: [], hears: [] };
          for (const { tenant, cost } of costs) {
            from.exchange.served(tenant, cost);
            served.set(tenant, (served.get(tenant) ?? 0) + cost);
          }
          const before = from.told.length;
          from.exchange.tick();
          to.exchange.tick();
          const delays = i % 4 === 0 ? [0, ...hears] : hears;
          for (const news of from.told.slice(before))
            underWay.push(...delays.map((delay) => ({ at: i + delay, news })));
          for (const { at, news } of underWay) if (at === i) to.exchange.heard('a', news);
          for (const [tenant, cost] of to.charged) expect(cost).toBeLessThanOrEqual(served.get(tenant)!);
        }
        const heard = ['x', 'y', 'z'].map((tenant) => to.charged.get(tenant) ?? 0);
        expect(heard).toEqual(['x', 'y', 'z'].map((tenant) => served.get(tenant) ?? 0));
      }),
      { numRuns: 1_000 },
    );
  });

  test('a gateway that comes later, or has heard nothing for long, charges what was served in the last second', () => {
    let nowMs = 0;
    const [from, to] = [gateway('a', () => nowMs), gateway('b', () => nowMs)];
    for (let i = 0; i < 100; i++, nowMs += NEWS_EVERY_MS) {
      from.exchange.served('x', 10);
      from.exchange.tick();
    }
    to.exchange.heard('a', from.told.at(-1));
    expect(to.charged.get('x')).toBeGreaterThanOrEqual(40);
    expect(to.charged.get('x')).toBeLessThanOrEqual(50);
  });

  test('a tenant that comes back after its total was forgotten is charged what it is served then', () => {
    let nowMs = 0;
    const [from, to] = [gateway('a', () => nowMs), gateway('b', () => nowMs)];
    const serve = (tenant: string, cost: number) => {
      from.exchange.served(tenant, cost);
      for (let i = 0; i < 12; i++, nowMs += NEWS_EVERY_MS) {
        const before = from.told.length;
        from.exchange.tick();
        for (const news of from.told.slice(before)) to.exchange.heard('a', news);
      }
    };
    serve('x', 1_000);
    expect(from.told.length).toBeLessThan(12); // nothing is told any more
    serve('y', 5);
    serve('x', 7);
    expect([...to.charged]).toEqual([
      ['x', 1_007],
      ['y', 5],
    ]);
  });

  test('a gateway of version 0.1 hears what was served since the last news, and is heard', () => {
    const [from, to] = [gateway('a', () => 0), gateway('b', () => 0)];
    from.exchange.served('x', 3);
    from.exchange.tick();
    from.exchange.served('x', 4);
    from.exchange.tick();
    expect(from.told.map(({ served }) => served)).toEqual([[['x', 3]], [['x', 4]]]);
    for (const { served, waiting } of from.told) to.exchange.heard('old', { served, waiting });
    expect(to.charged.get('x')).toBe(7);
  });
});
