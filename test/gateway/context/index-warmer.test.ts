import { beforeEach, expect, test, vi } from 'vitest';
import { keepIndexesWarm } from '../../../services/gateway/context/index-warmer.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';

/** Time that passes only in pauses. */
const clock = vi.hoisted(() => ({ ms: 0, onPause: () => {} }));
vi.mock('node:timers/promises', () => ({
  setTimeout: async (ms: number) => {
    clock.ms += ms;
    clock.onPause();
  },
}));

beforeEach(() => {
  clock.ms = 0;
  vi.spyOn(performance, 'now').mockImplementation(() => clock.ms);
});

/** Runs until so much time has passed. @param at what happens at a time, in ms. */
async function run(untilMs: number, options: { published: Map<string, string[]>; at?: Record<number, () => void> }) {
  const { published, at = {} } = options;
  const looks: string[] = [];
  const warmed: string[] = [];
  const store = {
    repositories: async (tenant: string) => {
      looks.push(tenant);
      if (!published.has(tenant)) throw new ServingError('store_unavailable', 'refused');
      return published.get(tenant)!;
    },
  };
  const retrieval = {
    warm: async (repo: string) => {
      warmed.push(repo);
      if (repo === 'acme/a') throw new ServingError('store_invalid', 'damaged');
    },
  };
  const closing = new AbortController();
  const due = Object.entries(at).map(([ms, task]) => ({ ms: Number(ms), task }));
  clock.onPause = () => {
    while (due.length > 0 && due[0]!.ms <= clock.ms) due.shift()!.task();
    if (clock.ms >= untilMs) closing.abort();
  };
  const tenants = [...new Set(['acme', ...published.keys()])];
  await keepIndexesWarm(store, retrieval, { tenants }, closing.signal);
  return { looks, warmed };
}

test('published indexes are loaded before anyone asks for them, one tenant after the other, whatever fails', async () => {
  const published = new Map([
    ['acme', ['acme/a', 'acme/b']],
    ['globex', [] as string[]],
  ]);
  const at = {
    500: () => published.set('globex', ['globex/c']),
    2000: () => published.set('acme', ['acme/a', 'acme/b', 'acme/new']),
    3000: () => published.delete('globex'),
  };
  const { looks, warmed } = await run(4_000, { published, at });
  expect(looks).toEqual(['acme', 'globex', 'acme', 'globex', 'acme', 'globex', 'acme', 'globex']);
  expect(warmed.slice(0, 5)).toEqual(['acme/a', 'acme/b', 'globex/c', 'acme/a', 'acme/b']);
  expect(warmed).toContain('acme/new');
});

test('an idle minute asks the store for each of a few tenants 60 times, and for many 600 times in all', async () => {
  const idle = (tenants: number) => new Map(Array.from({ length: tenants }, (_, i) => [`tenant-${i}`, [] as string[]]));
  const looksOf = async (tenants: number) => {
    clock.ms = 0;
    const published = new Map([['acme', [] as string[]], ...idle(tenants - 1)]);
    return (await run(60_000, { published })).looks.length;
  };
  expect(await looksOf(1)).toBe(60);
  expect(await looksOf(4)).toBe(240);
  expect(await looksOf(50)).toBe(600);
});
