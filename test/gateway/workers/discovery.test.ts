import { afterEach, describe, expect, test } from 'vitest';
import { type AddressSource, sourcesOf } from '../../../services/gateway/workers/address-sources.ts';
import { watchAddresses } from '../../../services/gateway/workers/discovery.ts';
import { stayRegistered } from '../../../services/lib/redis/worker-registry.ts';
import { keepingLog } from '../../support/keeping-log.ts';
import { startRedis } from '../../support/redis.ts';

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});
const log = keepingLog([]);

/** The reported addresses, the latest last. */
function watched(start: (told: Parameters<typeof watchAddresses>[1]) => { close(): void; first: Promise<void> }) {
  const told: (readonly string[])[] = [];
  /** Addresses that were listed before, at the same times. */
  const lapsed: (readonly string[])[] = [];
  const discovery = start((listed, lapsedOnes) => {
    told.push(listed);
    lapsed.push(lapsedOnes);
  });
  cleanups.push(() => discovery.close());
  return { told, lapsed, first: discovery.first };
}

test('given addresses are reported once', async () => {
  const sources = await sourcesOf(['a:1', 'b:2', 'a:1'], 'prefill', undefined, log);
  const { told, first } = watched((tell) => watchAddresses(sources, tell, log));
  await first;
  expect(told).toEqual([['a:1', 'b:2']]);
});

describe('a source', () => {
  test('a source is asked again, and the addresses of all sources are reported when they change', async () => {
    let answers: (string[] | Error)[] = [['a:1'], ['a:1'], ['a:1', 'c:3'], new Error('no answer'), ['c:3']];
    let asked = 0;
    const changing: AddressSource = {
      everyMs: 1,
      lapseMs: 0,
      list: async () => {
        const answer = answers[Math.min(asked++, answers.length - 1)]!;
        if (answer instanceof Error) throw answer;
        return answer;
      },
      close: () => {
        answers = [];
      },
    };
    const fixed: AddressSource = { everyMs: undefined, lapseMs: 0, list: async () => ['b:2'], close: () => {} };
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
    const silent: AddressSource = { everyMs: 1, lapseMs: 0, list: () => new Promise(() => {}), close: () => {} };
    const growing: AddressSource = { everyMs: 1, lapseMs: 0, list: async () => [`a:${++asked}`], close: () => {} };
    const { told } = watched((tell) => watchAddresses([silent, growing], tell, log));
    await expect.poll(() => told.length).toBeGreaterThan(2);
  });
});

describe('a source whose entries may be lost', () => {
  function losing(looks: (string[] | Error)[], lapseMs: number): AddressSource {
    const list = async () => {
      const look = looks.length > 1 ? looks.shift()! : looks[0]!;
      if (look instanceof Error) throw look;
      return look;
    };
    return { everyMs: 1, lapseMs, list, close: () => {} };
  }

  test('addresses that a source does not list any more are told apart, until it lists them again', async () => {
    const away = new Error('no answer');
    const source = losing([['a:1', 'b:2'], [], away, ['b:2'], ['a:1', 'b:2'], ['c:3']], 3_600_000);
    const { told, lapsed } = watched((tell) => watchAddresses([source], tell, log));
    await expect.poll(() => told.length).toBe(5);
    expect(told).toEqual([['a:1', 'b:2'], [], ['b:2'], ['a:1', 'b:2'], ['c:3']]);
    expect(lapsed).toEqual([[], ['a:1', 'b:2'], ['a:1'], [], ['a:1', 'b:2']]);
  });

  test('an address is forgotten when it has not been listed for long', async () => {
    const { told, lapsed } = watched((tell) => watchAddresses([losing([['a:1'], []], 20)], tell, log));
    await expect.poll(() => lapsed).toEqual([[], ['a:1'], []]);
    expect(told).toEqual([['a:1'], [], []]);
  });

  test('an address that another source lists has not lapsed', async () => {
    const given: AddressSource = { everyMs: undefined, lapseMs: 0, list: async () => ['a:1'], close: () => {} };
    const source = losing([['a:1', 'b:2'], []], 3_600_000);
    const { told, lapsed } = watched((tell) => watchAddresses([given, source], tell, log));
    await expect.poll(() => lapsed.at(-1)).toEqual(['b:2']);
    expect(told.at(-1)).toEqual(['a:1']);
  });
});

describe('a registry in Redis', () => {
  test('a registry tells a gateway who comes and leaves; while it is away the known workers stay', async () => {
    const redis = await startRedis();
    cleanups.push(() => redis.stop());
    const leave = stayRegistered(redis.url, ['prefill', 'decode'], 'a:1', log);
    const sources = await sourcesOf([redis.url], 'decode', undefined, log);
    const { told, lapsed } = watched((tell) => watchAddresses(sources, tell, log));
    await expect.poll(() => told, { timeout: 10_000 }).toEqual([['a:1']]);
    const other = stayRegistered(redis.url, ['decode'], 'b:2', log);
    await expect.poll(() => told.at(-1), { timeout: 10_000 }).toEqual(['a:1', 'b:2']);
    await leave();
    await expect.poll(() => told.at(-1), { timeout: 10_000 }).toEqual(['b:2']);
    expect(lapsed.at(-1)).toEqual(['a:1']);
    await redis.kill();
    await other();
    expect(told.at(-1)).toEqual(['b:2']);
  });
});
