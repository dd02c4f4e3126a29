import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { TokenQuota } from '../../../services/gateway/tenants/token-quota.ts';

const LIMITS = { tokensPerMinute: 600 };

function clocked() {
  const clock = { ms: 0 };
  return { clock, quota: new TokenQuota(() => clock.ms) };
}

describe('tokens per minute', () => {
  test('a tenant in debt waits until it has paid, and is told how long', () => {
    const { clock, quota } = clocked();
    quota.assertWithin('a', LIMITS);
    quota.spend('a', LIMITS, 900);
    const refusal = expect.objectContaining({
      code: 'quota_exceeded',
      limit: 'tokens-per-minute',
      retryAfterSeconds: 31, // 301 tokens at 10 a second
    });
    expect(() => quota.assertWithin('a', LIMITS)).toThrowError(refusal);
    quota.assertWithin('b', LIMITS);
    clock.ms = 30_000;
    expect(() => quota.assertWithin('a', LIMITS)).toThrowError(expect.objectContaining({ retryAfterSeconds: 1 }));
    clock.ms = 30_200;
    quota.assertWithin('a', LIMITS);
  });

  test('unused tokens are saved for one minute only', () => {
    const { clock, quota } = clocked();
    quota.spend('a', LIMITS, 1);
    clock.ms = 3_600_000;
    quota.spend('a', LIMITS, 599);
    quota.assertWithin('a', LIMITS);
    quota.spend('a', LIMITS, 1);
    expect(() => quota.assertWithin('a', LIMITS)).toThrow();
  });

  test('a tenant without a limit is never refused', () => {
    const { quota } = clocked();
    quota.spend('a', {}, 1e12);
    quota.assertWithin('a', {});
  });

  test('over any time a tenant gets its rate, one minute’s worth and one request more', () => {
    const requests = fc.array(fc.record({ afterMs: fc.nat(20_000), tokens: fc.nat(400) }), { maxLength: 200 });
    fc.assert(
      fc.property(requests, (list) => {
        const { clock, quota } = clocked();
        let spent = 0;
        for (const { afterMs, tokens } of list) {
          clock.ms += afterMs;
          try {
            quota.assertWithin('a', LIMITS);
          } catch {
            continue;
          }
          quota.spend('a', LIMITS, tokens);
          spent += tokens;
        }
        expect(spent).toBeLessThanOrEqual(600 + (clock.ms / 60_000) * 600 + 400);
      }),
    );
  });
});
