/** The parts of the optimiser that the golden steps do not reach: decay, clipping, schedules, and going on. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ADAM_DEFAULTS, AdamW, clip, rateAt } from '../../../training/step/optimizer.ts';

const parameters = () =>
  new Map([
    ['linear_1.weight', Float32Array.of(1, -2)],
    ['linear_1.bias', Float32Array.of(1)],
    ['ln_1.weight', Float32Array.of(1)],
  ]);
const gradients = (value: number) => new Map([...parameters()].map(([name, p]) => [name, p.map(() => value)]));

describe('AdamW', () => {
  test('weight decay shrinks matrices, and neither biases nor norms', () => {
    const trained = parameters();
    new AdamW(trained, { ...ADAM_DEFAULTS, weightDecay: 0.5 }).step(gradients(0), 0.1);
    expect([...trained.get('linear_1.weight')!]).toEqual([Math.fround(0.95), Math.fround(-1.9)]);
    expect([...trained.get('linear_1.bias')!, ...trained.get('ln_1.weight')!]).toEqual([1, 1]);
  });

  test('the first step has the size of the learning rate, against the gradient', () => {
    const trained = parameters();
    new AdamW(trained).step(gradients(3), 0.01);
    expect(trained.get('linear_1.bias')![0]).toBeCloseTo(0.99, 6);
    expect(trained.get('linear_1.weight')![1]).toBeCloseTo(-2.01, 6);
  });

  test('a copy of its state goes on as the original does', () => {
    const [whole, parted] = [parameters(), parameters()];
    const first = new AdamW(whole);
    const second = new AdamW(parted);
    for (const adam of [first, second]) adam.step(gradients(2), 0.1);
    const next = new AdamW(parted, ADAM_DEFAULTS, structuredClone(second.state));
    for (const adam of [first, next]) adam.step(gradients(-1), 0.1);
    expect(parted).toEqual(whole);
    expect(next.state).toEqual(first.state);
  });
});

describe('clipping', () => {
  test('gradients above the limit have the norm of the limit and the same direction; others stay', () => {
    const value = fc.double({ min: -100, max: 100, noNaN: true });
    fc.assert(
      fc.property(
        fc.array(value, { minLength: 1, maxLength: 5 }),
        fc.double({ min: 0.1, max: 50, noNaN: true }),
        (values, limit) => {
          const before = Float32Array.from(values);
          const after = new Map([
            ['a', before.slice()],
            ['b', Float32Array.of(1)],
          ]);
          const norm = clip(after, limit);
          expect(norm).toBeCloseTo(Math.hypot(...before, 1), 4);
          const factor = Math.min(1, limit / (norm + 1e-6));
          for (const [i, v] of after.get('a')!.entries()) expect(v).toBeCloseTo(before[i]! * factor, 3);
          expect(Math.hypot(...after.get('a')!, ...after.get('b')!)).toBeLessThanOrEqual(
            Math.max(limit, norm * factor) * 1.0001,
          );
        },
      ),
    );
  });

  test('a norm that is not finite is told', () => {
    expect(clip(new Map([['a', Float32Array.of(Number.NaN)]]), 1)).toBeNaN();
    expect(clip(new Map([['a', Float32Array.of(Number.POSITIVE_INFINITY)]]), 1)).toBe(Number.POSITIVE_INFINITY);
  });
});

describe('schedules', () => {
  test.each([
    ['cosine', [0, 0.5, 1, 0.75, 0.25, 0]],
    ['linear', [0, 0.5, 1, 2 / 3, 1 / 3, 0]],
  ] as const)('%s rises in the warm-up and falls to 0', (form, wanted) => {
    for (const [step, share] of wanted.entries()) {
      expect(rateAt(step, { form, warmup: 2, total: 5 })).toBeCloseTo(share, 12);
    }
  });

  test('without a warm-up the first step has the full rate', () => {
    expect(rateAt(0, { form: 'cosine', warmup: 0, total: 10 })).toBe(1);
  });
});
