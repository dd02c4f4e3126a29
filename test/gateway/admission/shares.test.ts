/** What tenants get that all want more, of prefill and of decode slots: real queues over simulated workers. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { RandomStream } from '../../../bench/measure/arrivals.ts';
import {
  type Demand,
  jain,
  PREEMPT_AFTER_MS,
  type SystemShape,
  simulatedSystem,
} from '../../support/simulated-system.ts';

const BUSY = { promptTokens: 120, outputTokens: 32, atOnce: 16 };

describe('shares of tenants that use prefill and slots in different proportions', () => {
  const wants = fc.record({
    promptTokens: fc.integer({ min: 10, max: 1_000 }),
    cachedPercent: fc.constantFrom(0, 50, 95),
    // 1: no decode slot is needed.
    outputTokens: fc.oneof(fc.constant(1), fc.integer({ min: 2, max: 100 })),
    weight: fc.integer({ min: 1, max: 4 }),
  });
  const workers = fc.record({
    slots: fc.array(fc.integer({ min: 2, max: 6 }), { minLength: 1, maxLength: 2 }),
    stepMs: fc.integer({ min: 1, max: 10 }),
    prefillTokensPerSecond: fc.integer({ min: 2_000, max: 20_000 }),
  });

  test('tokens are shared by weight, whatever mix of long prompts, long outputs and prompts without output waits', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(wants, { minLength: 2, maxLength: 3 }), workers, async (tenants, shape) => {
        const names = tenants.map((_, i) => `t${i}`);
        const weights = Object.fromEntries(names.map((name, i) => [name, tenants[i]!.weight]));
        const system = simulatedSystem({ ...shape, weights });
        try {
          await system.start();
          for (const [i, { weight: _, cachedPercent, ...demand }] of tenants.entries()) {
            const cachedTokens = Math.floor((demand.promptTokens * cachedPercent) / 100);
            system.ask({ ...demand, cachedTokens, tenant: names[i]!, atOnce: 16 });
          }
          await system.pass(10_000);
          const before = system.service(...names);
          await system.pass(30_000);
          const got = system.service(...names).map((tokens, i) => tokens - before[i]!);
          expect([jain(got) >= 0.95, got]).toEqual([true, got]);
        } finally {
          system.stop();
        }
      }),
      { numRuns: 6 },
    );
  }, 300_000);

  test.each([
    ['prompts as long as a slot with short outputs', 8],
    ['prompts as long as a slot without outputs', 1],
  ])('%s get their share of tokens, and leave others theirs', async (_, outputTokens) => {
    const system = simulatedSystem({ weights: { heavy: 3 }, slots: [8], stepMs: 10, prefillTokensPerSecond: 10_000 });
    await system.start();
    system.ask({ ...BUSY, tenant: 'heavy' });
    system.ask({ ...BUSY, tenant: 'light' });
    await system.pass(10_000);
    const alone = system.service('heavy', 'light');
    system.ask({ tenant: 'long', promptTokens: 1_008, outputTokens, atOnce: 12 });
    await system.pass(10_000);
    const before = system.service('heavy', 'light', 'long');
    await system.pass(20_000);
    const got = system.service('heavy', 'light', 'long').map((tokens, i) => tokens - before[i]!);
    expect(jain(got)).toBeGreaterThan(0.97);
    // Beside it the others keep at least as much as three tenants of these weights may expect: 4 parts of 5.
    expect(got[0]! / 2).toBeGreaterThan(0.75 * alone[0]!);
    expect(got[1]! / 2).toBeGreaterThan(0.75 * alone[1]!);
  });

  test('a tenant whose prompts are cached does not wait for tenants that come back with many choices', async () => {
    const system = simulatedSystem({ slots: [8, 8], stepMs: 20, prefillTokensPerSecond: 40_000 });
    await system.start();
    const typed = { tenant: 'typist', promptTokens: 160, cachedTokens: 158, outputTokens: 40, atOnce: 1 };
    const type = async (seconds: number) => {
      for (let i = 0; i < 4 * seconds; i++) {
        void system.once(typed);
        await system.pass(250);
      }
    };
    await type(60);
    const calm = system.waitsOf('typist').length;
    // Whatever they wanted before, their limits kept it from them.
    for (const tenant of ['x', 'z']) {
      void system.once({ tenant, promptTokens: 64, outputTokens: 48, choices: 64, atOnce: 1 });
    }
    await type(10);
    const waits = system.waitsOf('typist').slice(calm);
    expect(waits).toHaveLength(40);
    // It asks for 170 tokens/s, which is less than its third of 800. Were it charged for what is cached, it would ask
    // for 800, and wait for more than a second.
    expect(Math.max(...waits)).toBeLessThan(2.5 * PREEMPT_AFTER_MS);
  });

  /**
   * A tenant asks at random, with prompts of which nothing is cached, beside two that want everything.
   * @param requestsPerSecond 200 tokens each. 800 output tokens are computed in a second.
   * @returns how long its requests waited, in ascending order, and what each was served meanwhile.
   */
  async function besideTwo(requestsPerSecond: number) {
    const system = simulatedSystem({ slots: [8, 8], stepMs: 20, prefillTokensPerSecond: 5_000 });
    await system.start();
    for (const tenant of ['x', 'z']) {
      system.ask({ tenant, promptTokens: 64, outputTokens: 48, choices: 64, atOnce: 2 });
    }
    await system.pass(10_000);
    const random = new RandomStream(1);
    const names = ['honest', 'x', 'z'];
    const before = system.service(...names);
    for (let passedMs = 0; passedMs < 120_000; ) {
      void system.once({ tenant: 'honest', promptTokens: 160, outputTokens: 40, atOnce: 1 });
      const pauseMs = (random.gamma(1) * 1_000) / requestsPerSecond;
      await system.pass(pauseMs);
      passedMs += pauseMs;
    }
    const served = system.service(...names).map((tokens, i) => tokens - before[i]!);
    return { waits: system.waitsOf('honest').toSorted((a, b) => a - b), served };
  }

  test('a tenant that asks for its share gets a slot within a moment beside two that want everything', async () => {
    // A third of 800 tokens.
    const { waits } = await besideTwo(1.33);
    expect(waits.length).toBeGreaterThan(100);
    expect(waits[Math.floor(0.99 * waits.length)]).toBeLessThan(2.5 * PREEMPT_AFTER_MS);
  });

  test('a tenant that asks for more than its share gets its share, and queues', async () => {
    const { waits, served } = await besideTwo(2.66);
    expect(waits[Math.floor(0.5 * waits.length)]).toBeGreaterThan(1_000);
    expect(jain(served)).toBeGreaterThan(0.99);
  });

  test('a tenant that asks for little is served within a moment beside tenants whose sequences are long', async () => {
    const system = simulatedSystem({ slots: [4], stepMs: 10 });
    await system.start();
    system.ask({ tenant: 'long', promptTokens: 20, outputTokens: 2_000, choices: 16, atOnce: 2 });
    await system.pass(5_000);
    for (let i = 0; i < 5; i++) {
      void system.once({ tenant: 'typist', promptTokens: 60, outputTokens: 8, atOnce: 1 });
      await system.pass(500);
      expect(system.finishedOf('typist')).toBe(i + 1);
    }
  });
});

/** Delays of news and whether they are lost, by a generator of the test's own. */
function network(seed: number, delayMs: number, lossPercent: number) {
  const random = new RandomStream(seed);
  return () => (random.uniform() * 100 < lossPercent ? undefined : 1 + random.uniform() * delayMs);
}

describe('decode slots of several gateways', () => {
  const LONG = { tenant: 'long', gateway: 0, promptTokens: 20, outputTokens: 3_000, choices: 16, atOnce: 2 };

  test('a tenant that fills all slots through one gateway makes way for one that waits at another', async () => {
    const system = simulatedSystem({ gateways: 2, slots: [4], stepMs: 10 });
    await system.start();
    system.ask(LONG);
    await system.pass(3_000);
    system.ask({ ...BUSY, tenant: 'busy', gateway: 1 });
    await system.pass(2_000);
    expect(system.finishedOf('busy')).toBeGreaterThan(0);
    await system.pass(10_000);
    // One slot alone serves 3 sequences per second.
    expect(system.finishedOf('busy')).toBeGreaterThan(25);
    expect(system.held(0)).toBeGreaterThanOrEqual(2);
  });

  test('a tenant that asks for little at another gateway is served within two seconds, again and again', async () => {
    const system = simulatedSystem({ gateways: 3, slots: [4], stepMs: 10 });
    await system.start();
    system.ask(LONG);
    system.ask({ ...LONG, gateway: 2 });
    await system.pass(5_000);
    for (let i = 0; i < 8; i++) {
      void system.once({ tenant: 'typist', gateway: 1, promptTokens: 60, outputTokens: 8, atOnce: 1 });
      await system.pass(2_000);
      expect(system.finishedOf('typist')).toBe(i + 1);
    }
  });

  test('gateways that do not hear each other, or only one way, let every tenant get on', async () => {
    for (const deaf of [[0], [1], [0, 1]]) {
      const system = simulatedSystem({
        gateways: 2,
        slots: [4],
        stepMs: 10,
        delayMs: (to) => (deaf.includes(to) ? undefined : 5),
      });
      try {
        await system.start();
        system.ask({ ...LONG, outputTokens: 300 });
        await system.pass(2_000);
        system.ask({ ...BUSY, tenant: 'busy', gateway: 1 });
        await system.pass(30_000);
        expect([deaf, system.finishedOf('busy') > 5, system.finishedOf('long') > 5]).toEqual([deaf, true, true]);
      } finally {
        system.stop();
      }
    }
  });

  test('a sequence that waits in a worker for a slot comes back when one is free elsewhere', async () => {
    const system = simulatedSystem({ slots: [1, 1] });
    await system.start();
    const one = { promptTokens: 20, outputTokens: 30_000, atOnce: 1 };
    void system.once({ ...one, tenant: 'x' });
    void system.once({ ...one, tenant: 'z', outputTokens: 1_000 });
    void system.once({ ...one, tenant: 'y', outputTokens: 8 }); // behind x, the least recently chosen
    await system.pass(1_900);
    expect([system.finishedOf('z'), system.finishedOf('y')]).toEqual([0, 0]);
    await system.pass(2_500);
    expect([system.finishedOf('z'), system.finishedOf('y')]).toEqual([1, 1]);
  });

  test('a gateway whose slots do not reach the tenant that they were left for gives way less and less often', async () => {
    const system = simulatedSystem({ gateways: 2, slots: [4], stepMs: 10 });
    await system.start();
    system.ask(LONG);
    await system.pass(3_000);
    const before = system.preemptions();
    for (let forMs = 500; forMs < 20_500; forMs += 250) {
      system.members[0]!.hear('old', { served: [], waiting: ['y'], held: [], blocked: [['y', 1, 28, forMs]] });
      await system.pass(250);
    }
    // Every 750 ms it would be 26 times, and a sequence that waits for a slot may go with each.
    expect(system.preemptions() - before).toBeGreaterThan(1);
    expect(system.preemptions() - before).toBeLessThan(16);
  });

  const few = fc.record({
    gateways: fc.constantFrom(2, 3),
    slots: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 3 }),
    delayMs: fc.integer({ min: 1, max: 50 }),
    seed: fc.integer({ min: 1, max: 1e9 }),
  });
  const floods = fc.array(
    fc.record({ tenant: fc.constantFrom('x', 'z'), gateway: fc.nat(2), choices: fc.integer({ min: 1, max: 6 }) }),
    { minLength: 1, maxLength: 4 },
  );

  type Given = Omit<SystemShape, 'delayMs'> & { readonly delayMs: number; readonly seed: number };
  type Flood = Pick<Demand, 'tenant' | 'choices'> & { readonly gateway: number };

  /**
   * Sequences that never end are asked for, then a tenant asks for one short sequence after the other, each of which
   * must end within 2.5 s.
   * @param asks gateways that the tenant asks; it stops where it finds no slot that could be made free, and gets none.
   * @returns how many of them were answered.
   */
  async function smallAsksBesideFloods(given: Given, long: readonly Flood[], asks: readonly number[]): Promise<number> {
    const { gateways = 1, seed } = given;
    const system = simulatedSystem({ ...given, delayMs: network(seed, given.delayMs, 0) });
    try {
      await system.start();
      for (const { gateway, ...flood } of long) {
        const endless = { promptTokens: 20, outputTokens: 90_000, atOnce: 1 };
        void system.once({ ...endless, ...flood, gateway: gateway % gateways });
        await system.pass(1_500);
      }
      for (const [i, gateway] of asks.entries()) {
        const mayAtFirst = system.mayFreeSlot();
        const small = { tenant: 'y', gateway: gateway % gateways, promptTokens: 20, outputTokens: 8, atOnce: 1 };
        void system.once(small);
        await system.pass(PREEMPT_AFTER_MS);
        // Until then nobody makes way. A prompt that has waited for seconds may go to wait in a worker just then, which
        // no other gateway could have heard of, and as the first of its tenant and gateway it need not make way.
        const mayGetOne = mayAtFirst && system.mayFreeSlot();
        await system.pass(2_500 - PREEMPT_AFTER_MS);
        if (!mayGetOne && system.finishedOf('y') === i) return i; // it waits, and has a place in a worker's queue
        expect(system.finishedOf('y')).toBe(i + 1);
      }
      return asks.length;
    } finally {
      system.stop();
    }
  }

  test('a tenant without a slot gets one within 2.5 s, wherever sequences of a tenant with more than one may move', async () => {
    let checked = 0;
    const asks = fc.array(fc.nat(2), { minLength: 2, maxLength: 4 });
    const property = fc.asyncProperty(few, floods, asks, async (...given) => {
      checked += await smallAsksBesideFloods(...given);
    });
    await fc.assert(property, { numRuns: 25 });
    expect(checked).toBeGreaterThan(10);
  }, 300_000);

  test('a gateway with a prompt of the tenant that made way leaves the slot to the one that lacked it', async () => {
    // The third ask comes just after news of its gateway. Told a tick later, they came after those of the free slot.
    const given = { gateways: 3, slots: [3], delayMs: 3, seed: 999_999_997 };
    const long = [
      { tenant: 'z', gateway: 0, choices: 1 },
      { tenant: 'x', gateway: 1, choices: 2 },
      { tenant: 'x', gateway: 2, choices: 1 },
    ];
    expect(await smallAsksBesideFloods(given, long, [1, 1, 0])).toBe(3);
  });

  const shape = fc.record({
    gateways: fc.constantFrom(2, 3),
    slots: fc.array(fc.integer({ min: 3, max: 8 }), { minLength: 1, maxLength: 2 }),
    seed: fc.integer({ min: 1, max: 1e9 }),
    delayMs: fc.integer({ min: 1, max: 200 }),
    lossPercent: fc.constantFrom(0, 5),
  });
  const wants = fc.record({
    promptTokens: fc.integer({ min: 10, max: 500 }),
    outputTokens: fc.integer({ min: 2, max: 200 }),
    choices: fc.constantFrom(1, 4, 16),
    weight: fc.integer({ min: 1, max: 3 }),
    at: fc.subarray([0, 1, 2], { minLength: 1 }),
    sinceMs: fc.integer({ min: 0, max: 5_000 }),
  });

  test('tenants at several gateways get tokens by weight, whatever they ask for and however late news come', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(wants, { minLength: 2, maxLength: 3 }), shape, async (tenants, given) => {
        const names = tenants.map((_, i) => `t${i}`);
        const weights = Object.fromEntries(names.map((name, i) => [name, tenants[i]!.weight]));
        const delayMs = network(given.seed, given.delayMs, given.lossPercent);
        const system = simulatedSystem({ ...given, weights, stepMs: 5, prefillTokensPerSecond: 20_000, delayMs });
        try {
          await system.start();
          const later = tenants.toSorted((a, b) => a.sinceMs - b.sinceMs);
          let nowMs = 0;
          for (const tenant of later) {
            const { at, weight: _, sinceMs, ...demand } = tenant;
            await system.pass(sinceMs - nowMs);
            nowMs = sinceMs;
            const name = names[tenants.indexOf(tenant)]!;
            const atOnce = Math.ceil(24 / demand.choices);
            for (const gateway of new Set(at.map((each) => each % given.gateways))) {
              system.ask({ ...demand, tenant: name, gateway, atOnce });
            }
          }
          await system.pass(10_000);
          const [before, finished, preempted] = [system.service(...names), system.finished(), system.preemptions()];
          await system.pass(30_000);
          const got = system.service(...names).map((tokens, i) => tokens - before[i]!);
          expect([jain(got) >= 0.95, got]).toEqual([true, got]);
          // Most work is not for nothing: sequences make way about as often as they end, at most.
          expect(system.preemptions() - preempted).toBeLessThan(2 * (system.finished() - finished) + 20);
        } finally {
          system.stop();
        }
      }),
      { numRuns: 5 },
    );
  }, 300_000);

  test('sequences that never end change hands until all have their share, and then no more', async () => {
    const arrival = fc.record({ tenant: fc.constantFrom('a', 'b', 'c'), gateway: fc.nat(2), afterMs: fc.nat(3_000) });
    await fc.assert(
      fc.asyncProperty(fc.array(arrival, { minLength: 2, maxLength: 6 }), shape, async (arrivals, given) => {
        const delayMs = network(given.seed, given.delayMs, given.lossPercent);
        const system = simulatedSystem({ ...given, stepMs: 5, delayMs });
        try {
          await system.start();
          for (const { tenant, gateway, afterMs } of arrivals) {
            const endless = { promptTokens: 20, outputTokens: 90_000, choices: 8, atOnce: 1 };
            system.ask({ ...endless, tenant, gateway: gateway % given.gateways });
            await system.pass(afterMs);
          }
          await system.pass(20_000);
          const before = system.preemptions();
          await system.pass(60_000);
          expect(system.preemptions()).toBe(before);
          expect(before).toBeLessThanOrEqual(arrivals.length * 2 * given.slots.reduce((sum, count) => sum + count, 0));
        } finally {
          system.stop();
        }
      }),
      {
        numRuns: 11,
        examples: [
          [
            [
              { tenant: 'a', gateway: 0, afterMs: 0 },
              { tenant: 'c', gateway: 2, afterMs: 0 },
              { tenant: 'a', gateway: 2, afterMs: 0 },
            ],
            // Several news of the first gateway in a row are lost, and the next ones are late.
            { gateways: 3, slots: [7, 5], seed: 972_521_543, delayMs: 150, lossPercent: 5 },
          ],
          [
            [
              { tenant: 'b', gateway: 2, afterMs: 2_024 },
              { tenant: 'c', gateway: 1, afterMs: 1_933 },
              { tenant: 'c', gateway: 0, afterMs: 2_948 },
              { tenant: 'a', gateway: 0, afterMs: 2_896 },
              { tenant: 'b', gateway: 0, afterMs: 2_561 },
              { tenant: 'b', gateway: 0, afterMs: 2_083 },
            ],
            // The one that a slot is left for waits behind a tenant with its share of slots and fewer tokens.
            { gateways: 2, slots: [8, 4], seed: 806_200_532, delayMs: 2, lossPercent: 0 },
          ],
          [
            [
              { tenant: 'c', gateway: 2, afterMs: 983 },
              { tenant: 'c', gateway: 1, afterMs: 2_740 },
              { tenant: 'b', gateway: 0, afterMs: 1_168 },
              { tenant: 'c', gateway: 2, afterMs: 361 },
              { tenant: 'a', gateway: 0, afterMs: 390 },
              { tenant: 'b', gateway: 1, afterMs: 412 },
            ],
            // A sequence comes back from a worker for a slot that the other gateways think it should not have.
            { gateways: 3, slots: [3, 6], seed: 91_121_513, delayMs: 146, lossPercent: 0 },
          ],
        ],
      },
    );
  }, 300_000);
});
