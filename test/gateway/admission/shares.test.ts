/** What tenants get that all want more, of prefill and of decode slots: real queues over simulated workers. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { jain, simulatedSystem } from '../../support/simulated-system.ts';

const BUSY = { promptTokens: 120, outputTokens: 32, atOnce: 16 };

describe('shares of tenants that use prefill and slots in different proportions', () => {
  const wants = fc.record({
    promptTokens: fc.integer({ min: 10, max: 1_000 }),
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
          for (const [i, { weight: _, ...demand }] of tenants.entries()) {
            system.ask({ ...demand, tenant: names[i]!, atOnce: 16 });
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
      { numRuns: 10 },
    );
  }, 120_000);

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
