import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Demand } from '../../../services/gateway/tenants/token-quota.ts';
import { refusalOf, TenantAccounts, type TenantLimits } from '../../../services/gateway/tenants/token-quota.ts';

const LIMITS = { tokensPerMinute: 600 };
let number = 0;

const demand = (reserved: number, more: Partial<Demand> = {}): Demand => ({
  id: `r${number++}`,
  tenant: 'a',
  limits: LIMITS,
  session: undefined,
  sequences: 1,
  reserved,
  ...more,
});

function clocked() {
  const clock = { ms: 0 };
  return { clock, accounts: new TenantAccounts(() => clock.ms) };
}

describe('tokens per minute', () => {
  test('what a request may take is reserved while it runs, and what it did not take is given back', () => {
    const { accounts } = clocked();
    const first = demand(600);
    expect(accounts.admit(first).refusedBy).toBeUndefined();
    expect(accounts.admit(demand(1)).refusedBy).toBe('tokens-per-minute');
    expect(accounts.admit(demand(1, { tenant: 'b' })).refusedBy).toBeUndefined();
    accounts.settle(first, 20);
    expect(accounts.admit(demand(580))).toEqual({ refusedBy: undefined, inFlight: 0, tokens: 580 });
  });

  test('a tenant that owes tokens waits until it has paid, and is told how long', () => {
    const { clock, accounts } = clocked();
    const first = demand(100);
    accounts.admit(first);
    accounts.settle(first, 900); // its prompt had more tokens than was estimated
    const next = demand(1);
    expect(refusalOf(next, accounts.admit(next))).toMatchObject({
      code: 'quota_exceeded',
      limit: 'tokens-per-minute',
      retryAfterSeconds: 31, // 301 tokens at 10 a second
    });
    clock.ms = 30_000;
    expect(refusalOf(next, accounts.admit(next))).toMatchObject({ retryAfterSeconds: 1 });
    clock.ms = 30_200;
    expect(accounts.admit(next).refusedBy).toBeUndefined();
  });

  test('unused tokens are saved for one minute only', () => {
    const { clock, accounts } = clocked();
    accounts.admit(demand(1));
    clock.ms = 3_600_000;
    expect(accounts.admit(demand(600)).tokens).toBe(600);
    expect(accounts.admit(demand(1)).refusedBy).toBe('tokens-per-minute');
  });

  test('over any time a tenant gets its rate and one minute’s worth, whatever is in flight at once', () => {
    const steps = fc.record({ afterMs: fc.nat(20_000), asked: fc.integer({ min: 1, max: 600 }), part: fc.nat(100) });
    fc.assert(
      fc.property(fc.array(fc.tuple(steps, fc.boolean()), { maxLength: 200 }), (list) => {
        const { clock, accounts } = clocked();
        const running: { demand: Demand; takes: number }[] = [];
        let spent = 0;
        for (const [{ afterMs, asked, part }, ends] of list) {
          clock.ms += afterMs;
          const ending = ends ? running.shift() : undefined;
          if (ending) accounts.settle(ending.demand, ending.takes);
          const next = demand(asked);
          if (accounts.admit(next).refusedBy !== undefined) continue;
          const takes = Math.floor((asked * part) / 100);
          running.push({ demand: next, takes });
          spent += takes;
          expect(spent).toBeLessThanOrEqual(600 + (clock.ms / 60_000) * 600 + 1e-6);
        }
      }),
    );
  });
});

describe('sequences in flight', () => {
  const limits: TenantLimits = { maxInflight: 4 };
  const of = (sequences: number, session?: string) => demand(0, { limits, sequences, session });

  test('sequences count, not requests, and the refusal names all numbers', () => {
    const { accounts } = clocked();
    const first = of(3);
    accounts.admit(first);
    const second = of(2);
    const refusal = refusalOf(second, accounts.admit(second));
    expect(refusal).toMatchObject({ code: 'quota_exceeded', limit: 'max-inflight', retryAfterSeconds: 1 });
    expect(refusal.message).toBe(
      'tenant a has 3 of its 4 sequences in flight, and the request asks for 2 (prompts × best_of)',
    );
    expect(accounts.admit(of(1)).refusedBy).toBeUndefined();
    accounts.settle(first, 0);
    expect(accounts.admit(of(2)).refusedBy).toBeUndefined();
  });

  test('the request that a newer one supersedes does not keep it out', () => {
    const { accounts } = clocked();
    accounts.admit(of(4, 's'));
    expect(accounts.admit(of(1, 'other')).refusedBy).toBe('max-inflight');
    expect(accounts.admit(of(1)).refusedBy).toBe('max-inflight');
    expect(accounts.admit(of(4, 's')).refusedBy).toBeUndefined();
  });
});
