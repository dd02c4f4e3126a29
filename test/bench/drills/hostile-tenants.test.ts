import { expect, test } from 'vitest';
import { attackFor, HOSTILE_DRILLS } from '../../../bench/drills/hostile-tenants.ts';
import type { Attack } from '../../../bench/hostile/attack.ts';
import { scene } from '../../support/drill-scene.ts';
import { gateway } from '../../support/fake-http.ts';

const leavePipelines = HOSTILE_DRILLS.find(({ name }) => name === 'pipelines whose clients leave')!;

test('an attack carries the key of the second tenant, and ends with the drill', async () => {
  const keys: unknown[] = [];
  const { scene: fake, done } = scene({});
  const attack: Attack = {
    name: 'any',
    backlogged: false,
    run: async ({ door, until }) => {
      keys.push(door.apiKey);
      await new Promise((ended) => until.addEventListener('abort', ended));
    },
  };
  await attackFor(fake, attack, async () => {});
  expect(keys).toEqual(['hostile']);
  expect(done).toEqual(['marked']);
});

test('work for pipelines whose clients have left must end, also that of requests that wait', {
  timeout: 60_000,
}, async () => {
  const url = await gateway(() => {});
  let inFlight = 48;
  const { scene: fake } = scene({ url, running: () => inFlight });
  await expect(leavePipelines.disturb(fake)).rejects.toThrow('48 of 48 requests are at work 5000 ms after');
  const again = leavePipelines.disturb(fake);
  setTimeout(() => {
    inFlight = 2;
  }, 2_500);
  expect(await again).toMatch(/requests in flight, and 2 soon after the clients had left$/);
});
