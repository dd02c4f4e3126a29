/** What a gateway does with the accounts of all gateways, and without them. */
import { describe, expect, test, vi } from 'vitest';
import { COMPLETION_DEFAULTS } from '../../../services/gateway/request.ts';
import type { LedgerStanding } from '../../../services/gateway/tenants/tenant-ledger.ts';
import { TenantQuota } from '../../../services/gateway/tenants/tenant-quota.ts';
import type { Demand } from '../../../services/gateway/tenants/token-quota.ts';
import { keepingLog } from '../../support/keeping-log.ts';

const FAKED = [
  'performance',
  'setTimeout',
  'clearTimeout',
  'setInterval',
  'clearInterval',
  'setImmediate',
  'clearImmediate',
] as const;
const LIMITS = { maxInflight: 4, tokensPerMinute: 1_000 };
const GRANTED: LedgerStanding = { refusedBy: undefined, inFlight: 0, tokens: 1_000, atMs: 1 };
const AWAY = () => Promise.reject(new Error('away'));

function quotaOver(admit: (demand: Demand) => Promise<LedgerStanding>) {
  const lines: Record<string, unknown>[] = [];
  const ledger = {
    admit: vi.fn(admit),
    settle: vi.fn(async (_demand: Demand, _tokens: number) => GRANTED),
    renew: vi.fn(async (_demands: readonly Demand[]) => GRANTED),
  };
  const quota = new TenantQuota({ ledger, capacity: () => 0, log: keepingLog(lines) });
  const reserve = (bestOf = 1, limits: { maxInflight?: number; tokensPerMinute?: number } = LIMITS) => {
    const completion = { ...COMPLETION_DEFAULTS, prompts: [[1, 2]], bestOf, maxTokens: 10 };
    return quota.reserve({ tenant: 'a', limits, session: undefined, completion });
  };
  const read = (tokens: number) => quota.reserveReading({ tenant: 'a', limits: LIMITS }, tokens);
  return { ledger, reserve, read, lines };
}

test('the accounts of all gateways decide, and hear at the end what the request took, once', async () => {
  const { ledger, reserve } = quotaOver(async () => GRANTED);
  const reservation = await reserve(2);
  expect(ledger.admit.mock.lastCall?.[0]).toMatchObject({ tenant: 'a', sequences: 2, reserved: 22, limits: LIMITS });
  reservation.settle(7);
  reservation.settle(7);
  expect(ledger.settle.mock.calls.map(([{ id }, tokens]) => [id, tokens])).toEqual([
    [ledger.admit.mock.lastCall![0].id, 7],
  ]);
});

test('what other gateways have in flight keeps a request out, which then counts nowhere', async () => {
  let answer: LedgerStanding = { ...GRANTED, refusedBy: 'max-inflight', inFlight: 3 };
  const { ledger, reserve } = quotaOver(async () => answer);
  await expect(reserve(2)).rejects.toMatchObject({
    code: 'quota_exceeded',
    message: 'tenant a has 3 of its 4 sequences in flight, and the request asks for 2 (prompts × best_of)',
  });
  answer = GRANTED;
  (await reserve(4)).settle(0);
  expect(ledger.settle).toHaveBeenCalledTimes(1);
});

test('a request that this gateway’s own account refuses asks nobody, nor does a tenant without limits', async () => {
  const { ledger, reserve } = quotaOver(async () => GRANTED);
  await reserve(4);
  await expect(reserve(1)).rejects.toMatchObject({ code: 'quota_exceeded' });
  expect(ledger.admit).toHaveBeenCalledTimes(1);
  (await reserve(128, {})).settle(1e9);
  expect([ledger.admit.mock.calls.length, ledger.settle.mock.calls.length]).toEqual([1, 0]);
});

describe('while Redis is away', () => {
  test.each([
    ['fails', AWAY],
    ['never answers', () => new Promise<LedgerStanding>(() => {})],
  ])('limits are those of this gateway where Redis %s, and the log says so once', async (_, admit) => {
    const { ledger, reserve, lines } = quotaOver(admit);
    for (let i = 0; i < 20; i++) (await reserve(4)).settle(1);
    const held = await reserve(4);
    await expect(reserve(1)).rejects.toMatchObject({ code: 'quota_exceeded', limit: 'max-inflight' });
    held.settle(1);
    expect(lines.filter(({ level }) => level === 'warn').length).toBeLessThanOrEqual(1);
    // One that never answers is asked less and less; each question costs its deadline.
    expect(ledger.admit.mock.calls.length).toBeLessThanOrEqual(21);
  });

  test('a Redis that fails again and again is left alone for a while', async () => {
    vi.useFakeTimers({ toFake: [...FAKED] });
    try {
      const { ledger, reserve, lines } = quotaOver(AWAY);
      for (let i = 0; i < 10; i++) {
        await vi.advanceTimersByTimeAsync(200);
        if (i === 3) break;
        (await reserve()).settle(1);
      }
      expect(lines).toMatchObject([{ level: 'warn' }]);
      const asked = ledger.admit.mock.calls.length;
      (await reserve()).settle(1);
      expect(ledger.admit).toHaveBeenCalledTimes(asked);
      ledger.admit.mockImplementation(async () => GRANTED);
      await vi.advanceTimersByTimeAsync(60_000);
      (await reserve()).settle(1);
      (await reserve()).settle(1);
      expect(ledger.admit).toHaveBeenCalledTimes(asked + 2);
      expect(lines.map(({ level }) => level)).toEqual(['warn', 'info']);
    } finally {
      vi.useRealTimers();
    }
  });
});

test('leases are renewed as long as requests are in flight, refused ones never', async () => {
  vi.useFakeTimers({ toFake: [...FAKED] });
  try {
    const { ledger, reserve } = quotaOver(async ({ sequences }) =>
      sequences === 3 ? { ...GRANTED, refusedBy: 'max-inflight' } : GRANTED,
    );
    const held = await reserve(1);
    await expect(reserve(3)).rejects.toMatchObject({ code: 'quota_exceeded' });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(ledger.renew.mock.calls.length).toBeGreaterThan(5);
    for (const [demands] of ledger.renew.mock.calls) expect(demands.map(({ sequences }) => sequences)).toEqual([1]);
    held.settle(1);
    await vi.advanceTimersByTimeAsync(60_000);
    const renewed = ledger.renew.mock.calls.length;
    await vi.advanceTimersByTimeAsync(60_000);
    expect(ledger.renew).toHaveBeenCalledTimes(renewed);
    const again = await reserve(1);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(ledger.renew.mock.calls.length).toBeGreaterThan(renewed);
    again.settle(1);
  } finally {
    vi.useRealTimers();
  }
});

test('text that is only divided into tokens counts as one sequence, and as a hundredth of its tokens', async () => {
  const { ledger, read } = quotaOver(async () => GRANTED);
  const reservation = await read(12_345);
  expect(ledger.admit.mock.lastCall?.[0]).toMatchObject({ sequences: 1, reserved: 124, session: undefined });
  reservation.settle(0);
  const whole = await read(1e9); // no text is kept out for good
  expect(ledger.admit.mock.lastCall?.[0]).toMatchObject({ reserved: 1_000 });
  whole.settle(101);
  expect(ledger.settle.mock.lastCall?.[1]).toBe(2);
});
