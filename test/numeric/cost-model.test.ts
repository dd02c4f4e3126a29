import { describe, expect, it } from 'vitest';
import { fitCosts } from '../../services/lib/numeric/cost-model.ts';

describe('fitCosts', () => {
  const rates = { model: 'm', coresPerWorker: [1, 1] as const, slots: 8 };

  it('fitted costs follow the measurements, between and beyond them', () => {
    const costs = fitCosts({
      ...rates,
      prefill: [250, 500, 1000, 2000].map((tokens) => ({ tokens, ms: 5 + 0.6 * tokens + 1e-5 * tokens ** 2 })),
      decode: [1, 2, 4].map((batch) => ({ batch, ms: 8 + 2 * batch })),
    });
    expect(costs.prefillMs(1500)).toBeCloseTo(5 + 900 + 22.5, 6);
    expect([1, 3, 4, 10].map(costs.stepMs)).toEqual([10, 14, 16, 28]);
  });

  it('costs can be fitted to a single measurement of each kind', () => {
    const costs = fitCosts({ ...rates, prefill: [{ tokens: 500, ms: 70 }], decode: [{ batch: 1, ms: 9 }] });
    expect([costs.prefillMs(100), costs.stepMs(8)]).toEqual([70, 9]);
  });
});
