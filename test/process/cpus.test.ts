/** Sets of cores: read, and divided among workers. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { allowedCpus, divideCpus, parseCpus } from '../../services/lib/process/cpus.ts';

test.each([
  ['0', [0]],
  ['0-2,8', [0, 1, 2, 8]],
  ['3,1-2,3', [3, 1, 2]],
])('the cores of %s are read', (list, cpus) => expect(parseCpus(list)).toEqual(cpus));

test.each(['', '3-1', 'a', '1-', '0,,1', '0-99999999999', '8192'])('%j is not a list of cores', (list) => {
  expect(() => parseCpus(list)).toThrow(expect.objectContaining({ code: 'config_invalid' }));
});

test('this process may use at least one core', () => expect(allowedCpus().length).toBeGreaterThan(0));

describe('dividing', () => {
  test('every core goes to one worker, and each worker gets as many as the next one, or one more', () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.nat(255), { minLength: 1, maxLength: 64 }), fc.nat(), (cpus, n) => {
        const workers = 1 + (n % cpus.length);
        const runs = divideCpus(cpus, workers);
        expect(runs.flat()).toEqual(cpus);
        const sizes = runs.map((run) => run.length);
        expect(sizes).toHaveLength(workers);
        expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
      }),
    );
  });

  test('fewer cores than workers are refused', () => {
    expect(() => divideCpus([0, 1], 3)).toThrow(/3 workers .* 2 \(0,1\)/);
  });
});
