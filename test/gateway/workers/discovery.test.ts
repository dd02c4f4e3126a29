import { afterEach, describe, expect, test } from 'vitest';
import { type AddressSource, sourcesOf } from '../../../services/gateway/workers/address-sources.ts';
import { watchAddresses } from '../../../services/gateway/workers/discovery.ts';
import { stayRegistered } from '../../../services/lib/redis/worker-registry.ts';
import { keepingLog } from '../../support/fake-gateway.ts';
import { startRedis } from '../../support/redis.ts';

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});
const log = keepingLog([]);

/** The reported addresses, the latest last. */
function watched(start: (told: (addresses: readonly string[]) => void) => { close(): void; first: Promise<void> }) {
  const told: (readonly string[])[] = [];
  const discovery = start((addresses) => told.push(addresses));
  cleanups.push(() => discovery.close());
  return { told, first: discovery.first };
}

test('given addresses are reported once', async () => {
  const { told, first } = watched((tell) => watchAddresses(sourcesOf(['a:1', 'b:2', 'a:1'], 'prefill'), tell, log));
  await first;
  expect(told).toEqual([['a:1', 'b:2']]);
});

describe('a source', () => {
  test('a source is asked again, and the addresses of all sources are reported when they change', async () => {
    let answers: (string[] | Error)[] = [['a:1'], ['a:1'], ['a:1', 'c:3'], new Error('no answer'), ['c:3']];
    let asked = 0;
    const changing: AddressSource = {
      everyMs: 1,
      list: async () => {
        const answer = answers[Math.min(asked++, answers.length - 1)]!;
        if (answer instanceof Error) throw answer;
        return answer;
      },
      close: () => {
        answers = [];
      },
    };
    const fixed: AddressSource = { everyMs: undefined, list: async () => ['b:2'], close: () => {} };
    const { told } = watched((tell) => watchAddresses([changing, fixed], tell, log));
    await expect.poll(() => told.at(-1)).toEqual(['c:3', 'b:2']);
    expect(told.slice(-3)).toEqual([
      ['a:1', 'b:2'],
      ['a:1', 'c:3', 'b:2'],
      ['c:3', 'b:2'],
    ]);
    expect(asked).toBeGreaterThanOrEqual(5);
  });

  test('a source that never answers does not keep others from being asked again', async () => {
    let asked = 0;
    const silent: AddressSource = { everyMs: 1, list: () => new Promise(() => {}), close: () => {} };
    const growing: AddressSource = { everyMs: 1, list: async () => [`a:${++asked}`], close: () => {} };
    const { told } = watched((tell) => watchAddresses([silent, growing], tell, log));
    await expect.poll(() => told.length).toBeGreaterThan(2);
  });
});

describe('a registry in Redis', () => {
  test('a registry tells a gateway who comes and leaves; while it is away the known workers stay', async () => {
    const redis = await startRedis();
    cleanups.push(() => redis.stop());
    const leave = stayRegistered(redis.url, ['prefill', 'decode'], 'a:1', log);
    const { told } = watched((tell) => watchAddresses(sourcesOf([redis.url], 'decode'), tell, log));
    await expect.poll(() => told, { timeout: 10_000 }).toEqual([['a:1']]);
    const other = stayRegistered(redis.url, ['decode'], 'b:2', log);
    await expect.poll(() => told.at(-1), { timeout: 10_000 }).toEqual(['a:1', 'b:2']);
    await leave();
    await expect.poll(() => told.at(-1), { timeout: 10_000 }).toEqual(['b:2']);
    await redis.kill();
    await other();
    expect(told.at(-1)).toEqual(['b:2']);
  });
});
