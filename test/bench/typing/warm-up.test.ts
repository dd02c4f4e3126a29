import { expect, test } from 'vitest';
import { measureWarmUps } from '../../../bench/typing/warm-up.ts';
import { listeningGateway } from '../../support/fake-gateway.ts';

const KEYS = Array.from({ length: 18 }, (_, i) => ({ atMs: i, before: `total = ${'x'.repeat(i)}`, after: '\nend' }));

test('keystrokes after a warm-up and after a completion are measured in turns, and share nothing', async () => {
  const { port, workers } = await listeningGateway({ token: () => 70 });
  const url = `http://127.0.0.1:${port}`;
  const options = { repo: '', context: 'off', promptOrder: 'psm', timeoutMs: 60_000 } as const;
  const run = await measureWarmUps(url, 'fake', { path: 'a.py', keystrokes: KEYS }, options);
  // Keystrokes 0, 8 and 16, each with the next one.
  expect(run).toMatchObject({ pairs: 3, failed: 0, deployment: 'fake', context: 'off', promptOrder: 'psm' });
  const bare = workers.prefills.slice(-12).map(({ choices, cacheSalt }) => ({ choices: choices!.length, cacheSalt }));
  const salts = bare.map(({ cacheSalt }) => cacheSalt);
  expect(new Set(salts).size).toBe(6);
  expect(salts.every((salt, i) => salt === salts[i - (i % 2)])).toBe(true); // a keystroke finds its own beginning alone
  const decoded = workers.decodes.slice(-9);
  expect(decoded).toHaveLength(9); // of twelve requests, three warm-ups decode nothing
  // Each is computed from a prompt of its own: what was put out for the first keystroke answers no other one.
  const prompts = workers.prefills.slice(-12).map(({ tokenIds }) => tokenIds!.length);
  expect(run.warmedTokens).toBe(run.completedTokens);
  expect(prompts.every((length) => length > 0)).toBe(true);
  expect(run.ratio).toBeGreaterThan(0);
  expect(run.ratioInterval.low).toBeLessThanOrEqual(run.ratio);
  expect(run.records).toHaveLength(3);
});
