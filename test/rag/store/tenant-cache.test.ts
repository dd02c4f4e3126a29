import fc from 'fast-check';
import { expect, test } from 'vitest';
import { TenantCache } from '../../../services/lib/rag/store/tenant-cache.ts';

/** What is in a cache, by tenant: the keys of a tenant are `tenant:0` to `tenant:9`. */
function held(cache: TenantCache<number>, tenants: readonly string[]) {
  return new Map(
    tenants.map((tenant) => {
      const keys = Array.from({ length: 10 }, (_, i) => `${tenant}:${i}`).filter(
        (key) => cache.peek(key) !== undefined,
      );
      return [tenant, { keys, bytes: keys.reduce((sum, key) => sum + cache.peek(key)!, 0) }] as const;
    }),
  );
}

const TENANTS = ['a', 'b', 'c', 'd'];
const LIMIT = 100;

test('whatever tenants do, the limit holds, and who holds no more than a share loses nothing to others', () => {
  const step = fc.record({
    tenant: fc.constantFrom(...TENANTS),
    key: fc.nat(9),
    bytes: fc.integer({ min: 1, max: 120 }),
    does: fc.constantFrom('set', 'set', 'set', 'get', 'evict'),
    passesMs: fc.constantFrom(0, 1, 1_000, 700_000),
  });
  let [evictions, refusals] = [0, 0];
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      let nowMs = 0;
      const used = new Map<string, number>();
      const cache = new TenantCache<number>(LIMIT, () => nowMs);
      for (const { tenant, key, bytes, does, passesMs } of steps) {
        nowMs += passesMs;
        const name = `${tenant}:${key}`;
        const before = held(cache, TENANTS);
        if (does === 'get') {
          expect(cache.get(name)).toBe(cache.peek(name));
        } else if (does === 'evict') {
          const size = cache.size;
          const evicted = cache.evictFor(tenant, new Map([[tenant, bytes]]));
          expect(cache.size).toBe(size - Number(evicted));
        } else cache.set(name, bytes, bytes);
        if (does !== 'evict' && cache.peek(name) !== undefined) used.set(name, nowMs);
        if (does === 'set' && cache.peek(name) === undefined) refusals++;
        const after = held(cache, TENANTS);
        const total = [...after.values()].reduce((sum, { bytes }) => sum + bytes, 0);
        expect(cache.bytes).toBe(total);
        expect(total).toBeLessThanOrEqual(LIMIT);
        const active = new Set([tenant, ...TENANTS.filter((name) => before.get(name)!.bytes > 0)]).size;
        for (const [other, { keys, bytes }] of before) {
          if (other === tenant) continue;
          const lost = keys.filter((key) => !after.get(other)!.keys.includes(key));
          const inUse = lost.filter((key) => nowMs - used.get(key)! < 600_000);
          evictions += inUse.length;
          if (bytes <= LIMIT / active) expect(inUse).toEqual([]);
        }
      }
    }),
    { numRuns: 500, seed: 1 },
  );
  // Otherwise nothing was tested.
  expect(evictions).toBeGreaterThan(100);
  expect(refusals).toBeGreaterThan(100);
});

test('one tenant alone may have all of the room, and loses what it has used least recently', () => {
  const cache = new TenantCache<number>(30);
  for (const key of [0, 1, 2]) cache.set(`a:${key}`, key, 10);
  expect(cache.get('a:0')).toBe(0);
  cache.set('a:3', 3, 10);
  expect([0, 1, 2, 3].map((key) => cache.peek(`a:${key}`))).toEqual([0, undefined, 2, 3]);
});

test('a tenant that asks for everything gets what others do not use', () => {
  let nowMs = 0;
  const cache = new TenantCache<number>(100, () => nowMs);
  for (let key = 0; key < 10; key++) cache.set(`greedy:${key}`, key, 10);
  cache.set('small:0', 0, 20);
  for (let key = 10; key < 100; key++) cache.set(`greedy:${key}`, key, 10);
  expect(cache.peek('small:0')).toBe(0);
  cache.set('greedy:large', 1, 90);
  expect([cache.peek('greedy:large'), cache.peek('small:0')]).toEqual([undefined, 0]);
  nowMs = 600_000; // nobody has used it for ten minutes
  cache.set('greedy:large', 1, 90);
  expect([cache.peek('greedy:large'), cache.peek('small:0')]).toEqual([1, undefined]);
});
