import { expect, test } from 'vitest';
import { measureCapacity, rateWithinShare } from '../../../bench/drills/honest-rate.ts';
import type { CompletionBody } from '../../../services/client.ts';
import { Deferred } from '../../../services/lib/async/deferred.ts';
import { REFERENCE } from '../../support/drill-scene.ts';
import { events, gateway, refuse } from '../../support/fake-http.ts';

test('capacity is what is answered while more is asked for, with prompts of which nothing is cached', async () => {
  const salts: unknown[] = [];
  let nowMs = 0;
  const all = new Deferred<void>();
  const url = await gateway(async (body, _, response) => {
    if (salts.push((body as CompletionBody).cache_salt) === 32) all.resolve();
    await all.promise; // so many come before the first is answered
    nowMs += 100;
    events(response, REFERENCE.tokenIds);
  });
  const capacity = await measureCapacity({ url }, [REFERENCE], () => nowMs);
  expect(new Set(salts).size).toBe(salts.length);
  // In 6 s. An answer has 40 tokens of output; some came before the measurement or after it.
  const answers = (capacity * 6) / 40;
  expect(answers).toBeCloseTo(Math.round(answers), 6);
  expect(answers).toBeGreaterThan(0);
  expect(answers).toBeLessThan(salts.length);
});

test('the measurement of capacity fails if nothing is answered', async () => {
  let nowMs = 0;
  const url = await gateway((_, __, response) => {
    nowMs += 100;
    refuse(response, 'internal');
  });
  await expect(measureCapacity({ url }, [REFERENCE], () => nowMs)).rejects.toMatchObject({
    code: 'internal',
    message: expect.stringContaining('none of 32 requests'),
  });
});

test('an honest tenant asks for its share, all tokens of its prompts included', () => {
  // 0.6 requests for one answer and 0.15 for two make 156 tokens.
  expect(rateWithinShare(936, 3)).toBeCloseTo(2);
  expect(rateWithinShare(936, 1)).toBeCloseTo(6);
});
