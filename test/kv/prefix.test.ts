/** Prompts that begin alike, against a model that compares them token by token. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { KvPool, type KvSlot } from '../../services/lib/kv/pool.ts';
import { BLOCK_TOKENS, chainOf, PrefixCache, type PrefixSlot } from '../../services/lib/kv/prefix.ts';
import { NO_SOFT_TOKENS, type SoftTokens, type TokenPrompt } from '../../services/lib/request/token-prompt.ts';
import { FakeEngine, GARBAGE, HIDDEN, tokensOf } from '../support/fake-engine.ts';

const prompt = (ids: readonly number[], soft: SoftTokens = NO_SOFT_TOKENS): TokenPrompt => ({
  ids: Int32Array.from(ids),
  soft,
});
const softAt = (positions: readonly number[], first = 1): SoftTokens => ({
  positions: Int32Array.from(positions),
  vectors: Float32Array.from({ length: positions.length * HIDDEN }, (_, i) => first + i),
});
const count = (n: number) => Array.from({ length: n }, (_, i) => i % 29);
/** Blocks that two prompts share. */
function shared(a: TokenPrompt, b: TokenPrompt, saltA = '', saltB = ''): number {
  const [one, other] = [chainOf(a, saltA), chainOf(b, saltB)];
  let blocks = 0;
  while (blocks < one.length && one[blocks] === other[blocks]) blocks++;
  // Chains that differ in one block differ in all later ones.
  expect(one.slice(blocks).some((hash) => other.includes(hash))).toBe(false);
  return blocks;
}

describe('the chain of a prompt', () => {
  test('two prompts share the blocks whose tokens are the same', () => {
    fc.assert(
      fc.property(fc.nat(70), fc.nat(70), fc.nat(70), (begin, restA, restB) => {
        const beginning = count(begin);
        const a = [...beginning, ...new Array(restA).fill(27)];
        const b = [...beginning, ...new Array(restB).fill(28)];
        expect(shared(prompt(a), prompt(b))).toBe(Math.floor(begin / BLOCK_TOKENS));
        expect(chainOf(prompt(a), '')).toHaveLength(Math.floor(a.length / BLOCK_TOKENS));
      }),
    );
  });

  test('two prompts share blocks up to the first soft token whose bytes differ', () => {
    const ids = count(64);
    const soft = softAt([0, 5, 16, 40, 63]);
    fc.assert(
      fc.property(fc.nat(soft.vectors.length - 1), fc.nat(31), (element, bit) => {
        const vectors = soft.vectors.slice();
        const bits = new Uint32Array(vectors.buffer);
        bits[element] = (bits[element] as number) ^ (1 << bit);
        const at = soft.positions[Math.floor(element / HIDDEN)] as number;
        expect(shared(prompt(ids, soft), prompt(ids, { ...soft, vectors }))).toBe(Math.floor(at / BLOCK_TOKENS));
      }),
    );
    expect(shared(prompt(ids, soft), prompt(ids, softAt([0, 5, 16, 40, 63])))).toBe(4);
  });

  test('two prompts share blocks up to a soft token that only one of them has there', () => {
    const ids = count(64);
    expect(shared(prompt(ids, softAt([20])), prompt(ids))).toBe(1);
    expect(shared(prompt(ids, softAt([20])), prompt(ids, softAt([21])))).toBe(1);
    expect(shared(prompt(ids, softAt([20, 40])), prompt(ids, softAt([20])))).toBe(2);
    expect(shared(prompt(ids, softAt([31])), prompt(ids, softAt([32])))).toBe(1);
  });

  test('two prompts with different salts share no block', () => {
    const a = prompt(count(48));
    expect(shared(a, a, 'tenant', 'tenant')).toBe(3);
    for (const [one, other] of [
      ['', 'tenant'],
      ['a', 'b'],
      ['1 ', '1'],
      ['a', 'a '],
    ]) {
      expect(shared(a, a, one, other)).toBe(0);
    }
  });
});

/** What a slot of the model holds. `known` is the beginning of a prompt, a whole number of blocks. */
interface NaiveEntry {
  readonly slot: number;
  readonly known: readonly string[];
  readonly tenant: string;
  lastUsed: number;
  reused: boolean;
  pins: number;
}

/** A model of the cache that compares prompts token by token. */
class NaiveCache {
  readonly states: ('free' | 'held' | 'kept')[];
  /** In order of arrival. */
  entries: NaiveEntry[] = [];
  readonly #takenOver: boolean[] = [];
  #clock = 0;

  constructor(slots: number) {
    this.states = new Array(slots).fill('free');
  }

  reserve(
    tokens: readonly string[],
    tenant: string,
  ): { slot: number; positions: number; copyFrom: number | undefined } | undefined {
    const lengths = this.entries.map(({ known }) => wholeBlocks(commonLength(known, tokens)));
    const longest = Math.max(0, ...lengths);
    const match = longest > 0 ? this.entries[lengths.indexOf(longest)] : undefined;
    const positions = Math.max(0, Math.min(longest, tokens.length - 2));
    if (match) Object.assign(match, { lastUsed: ++this.#clock, reused: true });
    const takeOver = () => {
      if (match?.pins !== 0 || this.states[match.slot] !== 'kept') return undefined;
      this.#takenOver[match.slot] = true;
      return this.#hold(match.slot, positions, undefined);
    };
    const holdsLittleElse = match !== undefined && longest * 2 >= match.known.length;
    const taken = holdsLittleElse ? takeOver() : undefined;
    if (taken) return taken;
    const free = this.states.indexOf('free');
    const slot = free >= 0 ? free : this.#victim(tenant, match);
    if (slot === undefined) return takeOver();
    this.#takenOver[slot] = false;
    if (match) match.pins++;
    return this.#hold(slot, positions, match?.slot);
  }

  /** The slot whose prompt goes, by one sort in the order of the reasons. */
  #victim(tenant: string, match: NaiveEntry | undefined): number | undefined {
    const ofKind = (kind: boolean) => this.entries.filter(({ reused }) => reused === kind);
    const first = ofKind(true).length / this.states.length > 0.75;
    const have = (entry: NaiveEntry) =>
      ofKind(entry.reused).filter((each) => each.tenant === entry.tenant).length + Number(entry.tenant === tenant);
    const order = (entry: NaiveEntry) => [
      entry.reused === first ? 0 : 1,
      -have(entry),
      entry.tenant === tenant ? 0 : 1,
      entry.lastUsed,
    ];
    return this.entries
      .filter((entry) => entry !== match && entry.pins === 0 && this.states[entry.slot] === 'kept')
      .map((entry) => ({ entry, by: order(entry) }))
      .sort((a, b) => a.by.map((value, i) => value - b.by[i]!).find((difference) => difference !== 0) ?? 0)[0]?.entry
      .slot;
  }

  #hold(slot: number, positions: number, copyFrom: number | undefined) {
    this.states[slot] = 'held';
    this.entries = this.entries.filter((entry) => entry.slot !== slot);
    return { slot, positions, copyFrom };
  }

  unpin(slot: number): void {
    for (const entry of this.entries) if (entry.slot === slot) entry.pins--;
  }

  add(slot: number, tokens: readonly string[], tenant: string): void {
    const known = tokens.slice(0, wholeBlocks(tokens.length));
    const reused = this.#takenOver[slot] === true;
    if (known.length > 0) this.entries.push({ slot, known, tenant, lastUsed: ++this.#clock, reused, pins: 0 });
  }

  release(slot: number): void {
    this.states[slot] = this.entries.some((entry) => entry.slot === slot) ? 'kept' : 'free';
  }
}

const wholeBlocks = (length: number) => Math.floor(length / BLOCK_TOKENS) * BLOCK_TOKENS;
function commonLength(a: readonly string[], b: readonly string[]): number {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length++;
  return length;
}

interface Asked {
  readonly whole: TokenPrompt;
  readonly salt: string;
}
/** Represents each position by everything that must be equal for it to be shared. */
const comparable = ({ whole, salt }: Asked) => {
  const soft = new Map([...whole.soft.positions].map((position, i) => [position, whole.soft.vectors[i * HIDDEN]]));
  return [...whole.ids].map((id, position) => `${salt}/${id}/${soft.get(position) ?? 'hard'}`);
};

/** A family: block i is one of two, so that most prompts share a beginning with some others. */
const asked: fc.Arbitrary<Asked> = fc
  .record({
    blocks: fc.array(fc.constantFrom(0, 0, 0, 1), { minLength: 1, maxLength: 4, size: 'max' }),
    rest: fc.nat(BLOCK_TOKENS - 1),
    soft: fc.option(fc.record({ at: fc.nat(60), value: fc.nat(1) }), { freq: 1 }),
    salt: fc.constantFrom('', '', '', '', 'other', 'third'), // the tenant
  })
  .map(({ blocks, rest, soft, salt }) => {
    const ids = [...blocks.flatMap((variant) => new Array(BLOCK_TOKENS).fill(variant)), ...new Array(rest + 1).fill(2)];
    const hasSoft = soft !== null && soft.at < ids.length;
    return { whole: prompt(ids, hasSoft ? softAt([soft.at], soft.value) : NO_SOFT_TOKENS), salt };
  });

describe('the prefix cache', () => {
  const which = fc.nat(9);
  const action = fc.oneof(
    { weight: 4, arbitrary: fc.record({ do: fc.constant('ask' as const), asked }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('compute' as const), which }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('fail' as const), which, after: fc.nat(80) }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('release' as const), which }) },
  );

  test('the cache behaves like its model over random reservations and releases, and slots hold what it says', () => {
    let reused = 0;
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 6 }),
        fc.array(action, { maxLength: 40, size: 'max' }),
        (slots, actions) => {
          const { pool, ...engine } = fakeEngine(slots);
          const cache = new PrefixCache(pool);
          const model = new NaiveCache(slots);
          const computing: (Asked & { start: PrefixSlot })[] = [];
          const computed: PrefixSlot[] = [];

          /** Positions [0, end) of the slot are the prompt's; the rest is not. */
          const compute = ({ whole, start }: (typeof computing)[number], end: number) => {
            const { slot, positions, copyFrom } = start;
            if (copyFrom) {
              void pool.store.copy(copyFrom.slot, slot.index, positions); // at once, in the process's memory
              copyFrom.done();
              model.unpin(copyFrom.slot);
            }
            const tokens = tokensOf(whole);
            engine.write(slot.index, positions, tokens.slice(positions, end));
            engine.write(slot.index, end, new Array(tokens.length - end).fill(GARBAGE));
            expect(engine.read(slot.index, end)).toEqual(tokens.slice(0, end));
          };
          const take = <T>(from: T[], index: number) => from.splice(index % from.length, 1)[0] as T;

          for (const action of actions) {
            if (action.do === 'ask') {
              const { whole, salt } = action.asked;
              const start = cache.reserve(chainOf(whole, salt), whole.ids.length, salt);
              const expected = model.reserve(comparable(action.asked), salt);
              expect(start && { ...start, slot: start.slot.index, copyFrom: start.copyFrom?.slot }).toEqual(expected);
              if (start) computing.push({ ...action.asked, start });
              reused += start?.positions ?? 0;
            } else if (action.do === 'compute' && computing.length > 0) {
              const job = take(computing, action.which);
              const { whole, salt, start } = job;
              compute(job, whole.ids.length);
              cache.add(start.slot.index, chainOf(whole, salt), whole.ids.length, salt);
              model.add(start.slot.index, comparable(job), salt);
              computed.push(start);
            } else if (action.do === 'fail' && computing.length > 0) {
              // Its caller hung up after a part was computed, from which others may start.
              const job = take(computing, action.which);
              const { whole, salt, start } = job;
              const end = Math.min(whole.ids.length, start.positions + action.after);
              compute(job, end);
              cache.add(start.slot.index, chainOf(whole, salt), end, salt);
              model.add(start.slot.index, comparable(job).slice(0, end), salt);
              cache.release(start.slot);
              model.release(start.slot.index);
            } else if (action.do === 'release' && computed.length > 0) {
              const { slot } = take(computed, action.which);
              cache.release(slot);
              model.release(slot.index);
            }
            pool.assertConserved(computing.length + computed.length);
            expect(model.states.filter((state) => state === 'held')).toHaveLength(pool.reserved);
            for (const [slot, state] of model.states.entries()) expect(pool.isKept(slot)).toBe(state === 'kept');
          }
          // Every slot still holds what the model knows of it.
          for (const { slot, known } of model.entries) {
            expect(engine.read(slot, known.length).length).toBe(known.length);
            expect(engine.read(slot, known.length)).not.toContain(GARBAGE);
          }
        },
      ),
      { numRuns: 300 },
    );
    expect(reused).toBeGreaterThan(1000);
  });

  const fakeEngine = (slots: number) => {
    const engine = new FakeEngine(slots, 96);
    return { pool: engine.pool, write: engine.write.bind(engine), read: engine.read.bind(engine) };
  };

  /** A cache of some slots, all kept, the i-th with a prompt of `i`s. */
  function full(slots: number) {
    const { pool } = new FakeEngine(slots, 96);
    const cache = new PrefixCache(pool);
    const of = (token: number, length = 40) => chainOf(prompt(new Array(length).fill(token)), '');
    for (let token = 0; token < slots; token++) {
      const { slot } = cache.reserve(of(token), 40) as PrefixSlot;
      cache.add(slot.index, of(token), 40);
      cache.release(slot);
    }
    return { pool, cache, of };
  }

  test('the last two tokens of a prompt are computed even if all of it is cached', () => {
    const { cache, of } = full(1);
    expect(cache.reserve(of(0, 32), 32)?.positions).toBe(30);
  });

  test('the prompt that was unused for the longest time is evicted', () => {
    const { cache, of } = full(3);
    const used = cache.reserve(of(0, 32), 32);
    expect(used).toMatchObject({ slot: { index: 0 }, positions: 30, copyFrom: undefined });
    cache.add(0, of(0, 32), 32);
    cache.release((used as PrefixSlot).slot);
    expect(cache.reserve(of(9), 40)?.slot.index).toBe(1);
    expect(cache.reserve(of(8), 40)?.slot.index).toBe(2);
    expect(cache.reserve(of(7), 40)?.slot.index).toBe(0);
    expect(cache.reserve(of(6), 40)).toBeUndefined();
  });

  describe('prompts of several tenants', () => {
    /** Tokens of a prompt that is like no other one. */
    let next = 100;
    const chainOfNew = (tenant: string) => chainOf(prompt(new Array(40).fill(next++)), tenant);

    /** Computes a prompt and keeps it. @returns how much of it was cached. */
    function serve(cache: PrefixCache, tenant: string, chain = chainOfNew(tenant), request?: string): number {
      const { slot, positions, copyFrom } = cache.reserve(chain, 40, tenant, request)!;
      copyFrom?.done();
      cache.add(slot.index, chain, 40, tenant, request);
      cache.release(slot);
      return positions;
    }

    const cacheOf = (slots: number) => new PrefixCache(new FakeEngine(slots, 96).pool);

    test('prompts that somebody is typing outlive a flood of new ones', () => {
      const cache = cacheOf(8);
      const typed = Array.from({ length: 6 }, () => chainOfNew('typist'));
      for (const chain of [...typed, ...typed]) serve(cache, 'typist', chain);
      for (let i = 0; i < 100; i++) serve(cache, 'flood');
      for (const chain of typed) expect(serve(cache, 'typist', chain)).toBe(32);
    });

    test('prompts that somebody is typing outlive those that requests come back with for more choices', () => {
      const cache = cacheOf(8);
      const typed = Array.from({ length: 6 }, () => chainOfNew('typist'));
      for (const [i, chain] of [...typed, ...typed].entries()) serve(cache, 'typist', chain, `typed ${i}`);
      for (let i = 0; i < 20; i++) {
        const chain = chainOfNew('flood');
        expect(serve(cache, 'flood', chain, `flood ${i}`)).toBe(0);
        for (let round = 0; round < 3; round++) expect(serve(cache, 'flood', chain, `flood ${i}`)).toBe(32);
      }
      for (const chain of typed) expect(serve(cache, 'typist', chain, 'later')).toBe(32);
    });

    test('a tenant that asks for many prompts again and again leaves others their share', () => {
      const cache = cacheOf(9);
      const typed = Array.from({ length: 3 }, () => chainOfNew('typist'));
      for (const chain of [...typed, ...typed]) serve(cache, 'typist', chain);
      const many = Array.from({ length: 40 }, () => chainOfNew('greedy'));
      for (const chain of many) for (let i = 0; i < 3; i++) serve(cache, 'greedy', chain);
      for (const chain of typed) expect(serve(cache, 'typist', chain)).toBe(32);
    });

    test("a new prompt is still there at its tenant's next keystroke, though another one sends new ones all the time", () => {
      const cache = cacheOf(8);
      for (const old of Array.from({ length: 8 }, () => chainOfNew('old'))) {
        for (let i = 0; i < 3; i++) serve(cache, 'old', old);
      }
      const typed = chainOfNew('typist');
      expect(serve(cache, 'typist', typed)).toBe(0);
      for (let i = 0; i < 50; i++) serve(cache, 'flood');
      expect(serve(cache, 'typist', typed)).toBe(32);
    });

    test('prompts that were reused once and are not used any more leave a quarter of the slots to new ones', () => {
      const cache = cacheOf(8);
      for (const old of Array.from({ length: 8 }, () => chainOfNew('old'))) {
        for (let i = 0; i < 3; i++) serve(cache, 'old', old);
      }
      const [one, two] = [chainOfNew('new'), chainOfNew('new')];
      serve(cache, 'new', one);
      serve(cache, 'new', two);
      expect([serve(cache, 'new', one), serve(cache, 'new', two)]).toEqual([32, 32]);
    });
  });

  test('a prompt is not evicted while it is copied', () => {
    const { pool } = new FakeEngine(2, 96);
    const cache = new PrefixCache(pool);
    const long = chainOf(prompt(new Array(80).fill(1)), '');
    const { slot } = cache.reserve(long, 80) as PrefixSlot;
    cache.add(slot.index, long, 80);
    cache.release(slot);
    // It shares a fifth of the slot's content, so the slot is not taken over.
    const short = cache.reserve(long.slice(0, 1), 20) as PrefixSlot;
    expect(short).toMatchObject({ slot: { index: 1 }, positions: 16, copyFrom: { slot: 0 } });
    expect(cache.reserve([], 5)).toBeUndefined();
    expect(cache.reserve(long, 80)).toBeUndefined(); // nor may it be taken over
    short.copyFrom?.done();
    expect(cache.reserve([], 5)?.slot.index).toBe(0);
    pool.assertConserved(2);
  });

  test('a beginning is copied from a slot that stays held', () => {
    const { pool } = new FakeEngine(2, 96);
    const cache = new PrefixCache(pool);
    const chain = chainOf(prompt(new Array(40).fill(1)), '');
    const first = cache.reserve(chain, 40) as PrefixSlot;
    expect(cache.reserve(chain, 40)).toMatchObject({ positions: 0, copyFrom: undefined }); // not computed yet
    cache.add(first.slot.index, chain, 40);
    expect(cache.reserve(chain, 40)).toBeUndefined();
    pool.assertConserved(2);
  });
});

test('a waiting prompt gets the slot that was copied from as soon as the copy is done', () => {
  const pool = new KvPool(new CpuKvStore({ layers: 1, kvHeads: 1, headDim: 1 }, 2, 128));
  const prefixes = new PrefixCache(pool);
  const long = prefixes.reserve([], 80);
  prefixes.add(0, ['a', 'b', 'c', 'd', 'e'], 80);
  long?.slot.keep();
  const copy = prefixes.reserve(['a', 'x'], 32);
  expect(copy?.copyFrom?.slot).toBe(0);
  let given: number | undefined;
  pool.wait(() => {
    given = pool.reserve(1)?.index;
    return given !== undefined;
  });
  copy?.copyFrom?.done();
  expect([given, pool.contended]).toEqual([0, false]);
});

describe('moving a slot', () => {
  const pool = () => new KvPool(new CpuKvStore({ layers: 1, kvHeads: 1, headDim: 1 }, 4, 96));
  const reserve = (slots: KvPool) => slots.reserve(80) as KvSlot;

  test('a slot is not moved to one that is held', () => {
    const slots = pool();
    const [a, b] = [reserve(slots), reserve(slots)];
    expect(new PrefixCache(slots).move(a, 80, b.index)).toBeUndefined();
  });

  test.each(['from', 'to'] as const)("a slot is not moved while a copy is made from the '%s' slot", (side) => {
    const slots = pool();
    const cache = new PrefixCache(slots);
    const [own, other] = [reserve(slots), reserve(slots)];
    const copied = side === 'from' ? own : other;
    cache.add(copied.index, chainOf(prompt(count(80)), ''), 80);
    if (side === 'to') cache.release(other);
    else other.release();
    const copying = cache.reserve(chainOf(prompt([...count(16), ...new Array(64).fill(5)]), ''), 80);
    expect(copying?.copyFrom?.slot).toBe(copied.index);
    const to = side === 'to' ? other.index : 3;
    expect(cache.move(own, 80, to)).toBeUndefined();
    copying?.copyFrom?.done();
    expect(cache.move(own, 80, to)).toMatchObject({ slot: { index: to } });
  });
});
