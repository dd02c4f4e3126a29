import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { planPools } from '../../../bench/plan/plan.ts';
import { DesiredWorkers, loadRates } from '../../../services/gateway/workers/desired-workers.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();
const costs = (await loadRates(join(PACKAGE_ROOT, 'bench/results/plan-0.5b.json')))!;
const IDLE = { prefillRate: 0, slots: 4, sequences: 0, waitingTokens: 0 };
const PER_SECOND = 4;

/** A minute and a half of a steady load. */
function loaded(desired: DesiredWorkers, promptTokens: number, outputTokens: number): number {
  for (let i = 0; i <= 90 * PER_SECOND; i++) desired.served(1, promptTokens, outputTokens, (i * 1000) / PER_SECOND);
  return 90_000;
}

describe('with the rates of llavacode plan', () => {
  test('a steady load wants the workers with which a plan begins', () => {
    const desired = new DesiredWorkers(costs);
    const found = desired.desired(IDLE, loaded(desired, 500, 25));
    // The plan finds no fewer, since it also bounds waits, and with a bound that is never reached no more.
    const plan = planPools(costs, {
      ...{ rate: PER_SECOND, promptTokens: 500, outputTokens: 25, target: 0.5, seed: 1 },
      slo: { ttft: 1e9, tpot: 1e9, e2e: 1e9 },
    });
    expect(Math.ceil(found.prefill)).toBe(plan.prefill);
    expect(Math.ceil(found.decode)).toBe(plan.decode);
  });

  test('twice the load wants twice the workers, and a load that is over wants none', () => {
    const one = new DesiredWorkers(costs);
    const two = new DesiredWorkers(costs);
    const nowMs = loaded(one, 500, 25);
    loaded(two, 500, 25);
    for (let i = 0; i <= 90 * PER_SECOND; i++) two.served(1, 500, 25, (i * 1000) / PER_SECOND);
    const [single, double] = [one.desired(IDLE, nowMs), two.desired(IDLE, nowMs)];
    expect(double.prefill / single.prefill).toBeGreaterThan(1.5);
    expect(one.desired(IDLE, nowMs + 120_000)).toEqual({ prefill: 0, decode: 0 });
  });

  test('what waits wants workers as well', () => {
    const desired = new DesiredWorkers(costs);
    const nowMs = loaded(desired, 500, 25);
    const waiting = { ...IDLE, waitingTokens: 50_000 };
    expect(desired.desired(waiting, nowMs).prefill).toBeGreaterThan(desired.desired(IDLE, nowMs).prefill);
  });

  test('a request that is turned away counts like the others', () => {
    const desired = new DesiredWorkers(costs);
    desired.turnedAway(0); // nothing is known of it
    const nowMs = loaded(desired, 500, 25);
    const before = desired.desired(IDLE, nowMs);
    for (let i = 0; i < 60 * PER_SECOND; i++) desired.turnedAway(nowMs);
    expect(desired.desired(IDLE, nowMs).prefill).toBeGreaterThan(1.5 * before.prefill);
  });
});

test('without rates prompts go by what prefill workers measured, and sequences by slots', () => {
  const desired = new DesiredWorkers(undefined);
  const nowMs = loaded(desired, 500, 25);
  const found = desired.desired({ prefillRate: 1_000, slots: 4, sequences: 9, waitingTokens: 0 }, nowMs);
  expect(found.prefill).toBeCloseTo((PER_SECOND * 500) / 1_000 / 0.9, 0);
  expect(found.decode).toBeCloseTo(9 / 4 / 0.9, 6);
  expect(desired.desired({ ...IDLE, slots: 0, sequences: 9 }, nowMs)).toEqual({ prefill: 0, decode: 0 });
});

test.each([
  ['{', /JSON/],
  ['{"result": {"rates": {"model": "x", "prefill": []}}}', /result\.rates\./],
])('a file that is not of llavacode plan (%s) is refused, and what is wrong is named', async (text, message) => {
  const file = join(dir, 'rates.json');
  await writeFile(file, text);
  await expect(loadRates(file)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(message),
  });
});
