import fc from 'fast-check';
import { expect, onTestFinished, test, vi } from 'vitest';
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
      const cache = new TenantCache<number>(LIMIT, Infinity, () => nowMs);
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
  const cache = new TenantCache<number>(100, Infinity, () => nowMs);
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

test('what was not used for its time goes when others come, few at a time, though there is room', () => {
  let nowMs = 0;
  const cache = new TenantCache<number>(1_000, 60_000, () => nowMs);
  for (let key = 0; key < 10; key++) cache.set(`a:${key}`, key, 1);
  nowMs = 59_999;
  cache.set('b:0', 0, 1);
  expect([cache.size, cache.get('a:3')]).toEqual([11, 3]);
  nowMs = 60_000;
  cache.set('b:1', 1, 1);
  expect([cache.size, cache.peek('a:3'), cache.peek('b:0')]).toEqual([8, 3, 0]);
  for (let key = 0; key < 100; key++) {
    nowMs += 60_000 / 10;
    cache.set(`c:${key}`, key, 1);
  }
  // Ten come in the time for which one is kept.
  expect(cache.size).toBe(10);
});

/** Which entry goes, found by looking at all of them: the rule as the head of the cache's file has it. */
class PlainCache {
  /** The least recently used one first. */
  entries: { key: string; tenant: string; bytes: number; usedMs: number }[] = [];

  evictFor(tenant: string, wanted: ReadonlyMap<string, number>, kept: string | undefined, nowMs: number): boolean {
    const oldest = this.entries.find(({ key }) => key !== kept);
    if (oldest === undefined) return false;
    const held = (name: string) => {
      const own = this.entries.filter((each) => each.tenant === name);
      return own.reduce((sum, { bytes }) => sum + bytes, wanted.get(name) ?? 0);
    };
    const tenants = new Set(this.entries.map((each) => each.tenant));
    let goes = oldest;
    if (nowMs - oldest.usedMs < 600_000) {
      const losses = [...tenants].flatMap((name) => {
        return this.entries.find((each) => each.tenant === name && each.key !== kept) ?? [];
      });
      const least = (a: (typeof losses)[0], b: (typeof losses)[0]) =>
        held(b.tenant) - held(a.tenant) || this.entries.indexOf(a) - this.entries.indexOf(b);
      goes = losses.sort(least)[0]!;
      const share = LIMIT / new Set([...tenants, ...wanted.keys()]).size;
      if (goes.tenant !== tenant && held(goes.tenant) <= share) return false;
    }
    this.entries = this.entries.filter((each) => each !== goes);
    return true;
  }
}

test('what goes is what a look at all entries would choose, whoever wants room and whatever is kept', () => {
  const name = fc.record({ tenant: fc.constantFrom(...TENANTS), key: fc.nat(3) });
  const step = fc.record({
    ...{ name, kept: fc.option(name), does: fc.constantFrom('set', 'set', 'set', 'get', 'evict', 'delete') },
    bytes: fc.integer({ min: 0, max: 24 }),
    wanted: fc.dictionary(fc.constantFrom(...TENANTS, 'e'), fc.integer({ min: 0, max: 60 })),
    passesMs: fc.constantFrom(0, 1, 1_000, 300_000),
  });
  const keyOf = ({ tenant, key }: { tenant: string; key: number }) => `${tenant}:${key}`;
  let evictions = 0;
  fc.assert(
    fc.property(fc.array(step, { minLength: 20, maxLength: 80 }), (steps) => {
      let nowMs = 0;
      const cache = new TenantCache<number>(LIMIT, Infinity, () => nowMs);
      const plain = new PlainCache();
      for (const { name, kept, does, bytes, wanted, passesMs } of steps) {
        nowMs += passesMs;
        const [{ tenant }, key] = [name, keyOf(name)];
        const known = plain.entries.find((each) => each.key === key);
        if (does === 'evict') {
          const [wants, keeps] = [new Map(Object.entries(wanted)), kept ? keyOf(kept) : undefined];
          const evicted = plain.evictFor(tenant, wants, keeps, nowMs);
          evictions += Number(evicted);
          expect(cache.evictFor(tenant, wants, keeps)).toBe(evicted);
        } else {
          if (does !== 'get' || known) plain.entries = plain.entries.filter((each) => each !== known);
          if (does === 'get' && known) plain.entries.push({ ...known, usedMs: nowMs });
          if (does === 'delete') cache.delete(key);
          else if (does === 'get') cache.get(key);
          else {
            const total = () => plain.entries.reduce((sum, each) => sum + each.bytes, bytes);
            let fits = total() <= LIMIT;
            while (!fits && plain.evictFor(tenant, new Map([[tenant, bytes]]), undefined, nowMs))
              fits = total() <= LIMIT;
            if (fits) plain.entries.push({ key, tenant, bytes, usedMs: nowMs });
            cache.set(key, bytes, bytes);
          }
        }
        const all = TENANTS.flatMap((tenant) => [0, 1, 2, 3].map((key) => keyOf({ tenant, key })));
        const expected = plain.entries.map((each) => each.key).sort();
        expect(all.filter((each) => cache.peek(each) !== undefined)).toEqual(expected);
      }
    }),
    { numRuns: 300 },
  );
  expect(evictions).toBeGreaterThan(500);
});

test('room among 10,000 tenants is made without looking at each of them', () => {
  const tenants = 10_000;
  const cache = new TenantCache<number>(tenants);
  for (let i = 0; i < tenants; i++) cache.set(`t${i}:0`, i, 1);
  // Elements of maps that anybody walks over; what the heaps do is counted in their own test.
  const next = vi.spyOn(Object.getPrototypeOf(new Map().entries()), 'next');
  onTestFinished(() => next.mockRestore());
  expect([...new Map([[1, 1]])]).toHaveLength(1);
  expect(next).toHaveBeenCalledTimes(2);
  next.mockClear();
  for (let i = 0; i < 100; i++) expect(cache.evictFor('new', new Map([['new', 100]]))).toBe(i < 1);
  expect(next.mock.calls.length).toBeLessThanOrEqual(100 * 4);
});
