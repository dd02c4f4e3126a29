/** The pace of a run in words. */
import { expect, test } from 'vitest';
import { duration, Pace } from '../../../training/run/pace.ts';

test('the pace is that of the latest steps, and the time left that of the steps that are left', () => {
  const pace = new Pace();
  for (let i = 0; i < 5; i++) pace.add(60_000, 1);
  for (let i = 0; i < 20; i++) pace.add(2_000, 1_000);
  expect(pace.words(90, 0)).toBe('500 tokens/s, 3 min left');
  expect(pace.words(90, 7)).toBe('500 tokens/s, 3 min left'); // nobody knows yet what a validation takes
  expect(pace.words(0, 0)).toBe('500 tokens/s, 0 s left');
});

test('the time left counts the validations that are still to come, by the latest ones', () => {
  const pace = new Pace();
  for (let i = 0; i < 20; i++) pace.add(2_000, 1_000);
  for (const ms of [600_000, 60_000, 50_000, 70_000]) pace.stopped(ms);
  expect(pace.words(90, 7)).toBe('500 tokens/s, 10 min left');
  expect(pace.words(0, 1)).toBe('500 tokens/s, 1 min left');
});

test('a duration has at most two units', () => {
  expect([0, 59_400, 59_600, 3_599_000, 3_660_000, 47.5 * 3_600_000, 50 * 3_600_000].map(duration)).toEqual([
    '0 s',
    '59 s',
    '1 min',
    '1 h 0 min',
    '1 h 1 min',
    '47 h 30 min',
    '2 d 2 h',
  ]);
});
