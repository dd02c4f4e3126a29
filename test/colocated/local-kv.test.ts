/** KV that was computed in the same process: adopted by its last reader, copied for the others. */
import fc from 'fast-check';
import { beforeEach, describe, expect, test } from 'vitest';
import { LocalKv, nearest } from '../../services/colocated/local-kv.ts';
import { SharedEngine } from '../../services/colocated/shared-engine.ts';
import { KvPuller } from '../../services/decode/kv-puller.ts';
import { type AcquiredKv, RemoteKv } from '../../services/decode/kv-source.ts';
import type { KvSlot } from '../../services/lib/kv/pool.ts';
import { chainOf, PrefixCache } from '../../services/lib/kv/prefix.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { type Lease, LeaseTable } from '../../services/prefill/leases.ts';
import { FakeEngine, GARBAGE, gate, LAYOUT, settle } from '../support/fake-engine.ts';
import { SlowStore } from '../support/slow-store.ts';
import { FINGERPRINT, NEVER } from '../support/workers.ts';

const HERE = '127.0.0.1:1';
const PROMPT = Array.from({ length: 20 }, (_, i) => i);
const FIRST = [7, 8, 9];

let engine: FakeEngine;
let shared: SharedEngine;
let prefixes: PrefixCache;
let leases: LeaseTable;
let kv: LocalKv;

/** @param wait what the operations of the store wait for; nothing if not given. */
function start(slots: number, wait?: () => Promise<void>): void {
  engine = new FakeEngine(slots, 32, LAYOUT, (memory) => (wait ? new SlowStore(memory, wait) : memory));
  shared = new SharedEngine(engine);
  const { pool } = engine;
  prefixes = new PrefixCache(pool);
  leases = new LeaseTable(pool, prefixes, 60_000);
  const puller = new KvPuller(pool, FINGERPRINT, createLogger('test', 'silent'));
  const remote = new RemoteKv(pool, puller, 0);
  const exclusive = (work: () => void | Promise<void>) => shared.inTurn(work);
  kv = new LocalKv({ pool, leases, prefixes, remote, address: () => HERE, exclusive });
}
beforeEach(() => start(3));

const conserved = () => engine.pool.assertConserved(leases.size + kv.held);
const handleOf = (lease: Lease, address = HERE) => ({
  address,
  leaseId: lease.id,
  fingerprint: FINGERPRINT,
  positions: PROMPT.length,
  leaseMs: 60_000,
  seal: Buffer.alloc(0),
});
const acquire = (lease: Lease, signal = NEVER) => kv.acquire(handleOf(lease), signal, async () => {});

/** A prompt that computes. */
const open = (readers: number) => {
  const slot = engine.pool.reserve(PROMPT.length) as KvSlot;
  return leases.open(slot, PROMPT.length, readers);
};
function complete(lease: Lease): Lease {
  engine.write(lease.slot.index, 0, PROMPT);
  const chain = chainOf({ ids: Int32Array.from(PROMPT), soft: NO_SOFT_TOKENS }, '');
  prefixes.add(lease.slot.index, chain, PROMPT.length);
  lease.advance(PROMPT.length);
  leases.complete(lease, FIRST);
  return lease;
}
const holdsPrompt = ({ slot }: AcquiredKv) => expect(engine.read(slot.index, PROMPT.length)).toEqual(PROMPT);

/** Holds the engine's turn. */
function holdTurn() {
  const held = gate();
  void shared.inTurn(() => held.opened);
  return held;
}

describe('a single reader', () => {
  test('a single reader takes over the slot at once, whatever the engine does, and its prompt is kept afterwards', async () => {
    const lease = complete(open(1));
    const turn = holdTurn();
    const acquired = await acquire(lease);
    expect(acquired).toMatchObject({ slot: { index: lease.slot.index }, firstTokenIds: FIRST, bytes: 0 });
    await lease.released; // Prefill's caller is told
    expect([leases.size, kv.held]).toEqual([0, 1]);
    conserved();
    turn.open();
    acquired.slot.release();
    acquired.slot.release(); // harmless
    expect(kv.held).toBe(0);
    expect(engine.pool.isKept(lease.slot.index)).toBe(true);
    conserved();
  });

  test('a reader waits until the prompt is computed', async () => {
    const lease = open(1);
    const acquiring = acquire(lease);
    await settle();
    expect(kv.held).toBe(0);
    complete(lease);
    holdsPrompt(await acquiring);
  });

  test('a reader is told why the prompt failed', async () => {
    const lease = open(1);
    const acquiring = acquire(lease);
    leases.end(lease, 'failed', new Error('the graph broke'));
    await expect(acquiring).rejects.toThrowError('the graph broke');
    await expect(acquire(lease)).rejects.toMatchObject({ code: 'lease_unknown' });
    conserved();
  });

  test('a prompt whose only reader hangs up while it waits is released when it is computed', async () => {
    const lease = open(1);
    const caller = new AbortController();
    const acquiring = acquire(lease, caller.signal);
    caller.abort(new Error('hung up'));
    await expect(acquiring).rejects.toThrowError('hung up');
    expect(leases.size).toBe(1);
    complete(lease);
    await lease.released;
    expect(leases.size).toBe(0);
    conserved();
  });

  describe('a reader beside other sequences', () => {
    const BEFORE = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3];
    const chainFor = (ids: readonly number[]) => chainOf({ ids: Int32Array.from(ids), soft: NO_SOFT_TOKENS }, '');

    /** An earlier prompt, kept in the lowest free slot. */
    function keep(ids = BEFORE) {
      const slot = engine.pool.reserve(ids.length) as KvSlot;
      engine.write(slot.index, 0, ids);
      prefixes.add(slot.index, chainFor(ids), ids.length);
      prefixes.release(slot);
      return slot.index;
    }

    test('a sequence moves next to the others, and its prompt is kept where it was', async () => {
      start(5);
      const first = await acquire(complete(open(1)));
      const between = [engine.pool.reserve(1), engine.pool.reserve(1)];
      const lease = complete(open(1));
      for (const slot of between) slot?.release();
      const acquired = await acquire(lease);
      expect([first.slot.index, lease.slot.index, acquired.slot.index]).toEqual([0, 3, 1]);
      holdsPrompt(acquired);
      expect(engine.pool.claimed(1)).toBe(PROMPT.length);
      expect([kv.held, engine.pool.isKept(3)]).toEqual([2, true]);
      expect(engine.read(3, PROMPT.length)).toEqual(PROMPT);
    });

    test('a sequence changes places with a prompt that is kept next to the others, and both are found again', async () => {
      start(3);
      const first = await acquire(complete(open(1)));
      expect(keep()).toBe(1);
      const acquired = await acquire(complete(open(1)));
      expect([first.slot.index, acquired.slot.index, kv.held]).toEqual([0, 1, 2]);
      holdsPrompt(acquired);
      expect([0, 1, 2].map((slot) => engine.pool.claimed(slot))).toEqual([PROMPT.length, PROMPT.length, BEFORE.length]);
      const again = prefixes.reserve(chainFor(BEFORE), BEFORE.length);
      expect(again).toMatchObject({ slot: { index: 2 }, positions: 16 });
      expect(engine.read(2, BEFORE.length)).toEqual(BEFORE);
      acquired.slot.release();
      expect(engine.pool.isKept(1)).toBe(true);
    });

    test('before two slots are exchanged neither prompt is found, and steps write behind both', async () => {
      start(3);
      await acquire(complete(open(1)));
      keep();
      const turn = holdTurn();
      const acquiring = acquire(complete(open(1)));
      await settle();
      expect([1, 2].map((slot) => engine.pool.claimed(slot))).toEqual([PROMPT.length, PROMPT.length]);
      expect(prefixes.reserve(chainFor(BEFORE), BEFORE.length)).toBeUndefined();
      turn.open();
      holdsPrompt(await acquiring);
    });
  });

  test('a sequence that moves has neither slot until a device has made the copy, and no run begins before', async () => {
    const copied = gate();
    start(4, () => copied.opened);
    const first = await acquire(complete(open(1)));
    const between = engine.pool.reserve(1);
    const lease = complete(open(1));
    between?.release();
    let acquired: AcquiredKv | undefined;
    const acquiring = acquire(lease).then((got) => {
      acquired = got;
    });
    await settle();
    let opened = false;
    const run = shared.inTurn(() => opened);
    await settle();
    expect([acquired, engine.pool.isHeld(1), engine.pool.isHeld(2)]).toEqual([undefined, true, true]);
    conserved();
    opened = true;
    copied.open();
    await acquiring;
    expect([first.slot.index, acquired?.slot.index, engine.pool.isKept(2)]).toEqual([0, 1, true]);
    holdsPrompt(acquired!);
    expect(await run).toBe(true);
  });

  test('a sequence whose slots a device fails to exchange holds none of them', async () => {
    start(4, () => Promise.reject(new Error('the device is lost')));
    await acquire(complete(open(1)));
    const between = engine.pool.reserve(1);
    const lease = complete(open(1));
    between?.release();
    await expect(acquire(lease)).rejects.toThrowError('the device is lost');
    expect([kv.held, engine.pool.reserved]).toEqual([1, 1]);
    expect([1, 2].map((slot) => engine.pool.isKept(slot))).toEqual([false, false]);
    conserved();
  });

  test('the chosen slot is never held nor farther away, and no slot is better', () => {
    const states = fc.array(fc.constantFrom('free', 'kept', 'held', 'sequence'), { minLength: 2, maxLength: 8 });
    fc.assert(
      fc.property(states, fc.nat(7), (all, at) => {
        const own = at % all.length;
        const others = new Set(all.flatMap((state, i) => (state === 'sequence' && i !== own ? [i] : [])));
        const isHeld = (i: number) => i === own || all[i] === 'held' || all[i] === 'sequence';
        const place = nearest(others, own, {
          slots: all.length,
          isHeld,
          isKept: (i) => !isHeld(i) && all[i] === 'kept',
        });
        const span = (i: number) => Math.max(i, ...others) - Math.min(i, ...others);
        const possible = all.flatMap((_, i) => (isHeld(i) ? [] : [span(i)]));
        const least = others.size === 0 ? span(own) : Math.min(span(own), ...possible);
        expect(span(place ?? own)).toBe(least);
        if (place !== undefined) expect(isHeld(place)).toBe(false);
      }),
    );
  });

  test('a handle with other positions than its lease is refused', async () => {
    const lease = complete(open(1));
    const handle = { ...handleOf(lease), positions: 19 };
    await expect(kv.acquire(handle, NEVER, async () => {})).rejects.toMatchObject({ code: 'invalid_request' });
    leases.end(lease, 'cancelled');
    conserved();
  });

  test('a reader of a lease that another reader has taken over is refused', async () => {
    const lease = complete(open(1));
    const both = await Promise.allSettled([acquire(lease), acquire(lease)]);
    expect(both[0]).toMatchObject({ status: 'fulfilled' });
    expect(both[1]).toMatchObject({ status: 'rejected', reason: { code: 'lease_unknown' } });
    expect(kv.held).toBe(1);
    conserved();
  });

  test.each(['cancelled', 'expired', 'failed'] as const)(
    'a reader gets the slot or is told that the lease is %s, at whatever microtask that happens',
    async (reason) => {
      const outcomes = new Set<string>();
      for (let turns = 0; turns < 12; turns++) {
        start(1);
        const lease = open(1);
        const acquiring = acquire(lease).then(
          ({ slot }) => {
            slot.release();
            return 'acquired';
          },
          (error: { code: string }) => error.code,
        );
        await settle();
        complete(lease);
        for (let turn = 0; turn < turns; turn++) await undefined;
        leases.end(lease, reason, new Error('broke'));
        outcomes.add(await acquiring);
        expect(leases.size + kv.held + engine.pool.reserved).toBe(0);
        conserved();
      }
      const code = { cancelled: 'lease_unknown', expired: 'lease_expired', failed: 'internal' }[reason];
      expect([...outcomes].sort()).toEqual(['acquired', code].sort());
    },
  );
});

describe('several readers', () => {
  test('of several waiting readers all but the last get a copy, in as many slots as there are readers', async () => {
    const lease = open(3);
    const acquiring = [acquire(lease), acquire(lease), acquire(lease)];
    await settle();
    complete(lease);
    const all = await Promise.all(acquiring);
    expect(all.map(({ slot }) => slot.index).sort()).toEqual([0, 1, 2]);
    all.forEach(holdsPrompt);
    expect(leases.size).toBe(0);
    await lease.released;
    conserved();
    // The prefix cache knows only one slot with the prompt, not its copies.
    for (const { slot } of all) slot.release();
    expect([0, 1, 2].map((slot) => engine.pool.isKept(slot))).toEqual([0, 1, 2].map((s) => s === lease.slot.index));
    conserved();
  });

  test('several readers can come one after another', async () => {
    const lease = complete(open(3));
    for (const left of [2, 1, 0]) {
      const acquired = await acquire(lease);
      holdsPrompt(acquired);
      expect(acquired.slot.index === lease.slot.index).toBe(left === 0);
      expect(lease.readersLeft).toBe(left);
    }
    conserved();
  });

  test('copies are whole even if the last reader ends before their turn', async () => {
    const lease = complete(open(3));
    const turn = holdTurn();
    const copies = [acquire(lease), acquire(lease)];
    const last = acquire(lease).then((acquired) => {
      // The last reader ends at once, and another prompt takes the slot.
      acquired.slot.release();
      const next = engine.pool.take(lease.slot.index, 5) as KvSlot;
      engine.write(next.index, 0, new Array(20).fill(GARBAGE));
      next.release();
    });
    await settle();
    turn.open();
    const all = await Promise.all(copies);
    await last;
    all.forEach(holdsPrompt);
    conserved();
  });

  test('a copy is made between two runs of the engine', async () => {
    const lease = complete(open(2));
    const turn = holdTurn();
    const copying = acquire(lease);
    await settle();
    expect(kv.held).toBe(1); // reserved, not filled
    // The current run began before slot 1 was reserved, and writes to it.
    engine.write(1, 0, [GARBAGE]);
    turn.open();
    holdsPrompt(await copying);
    holdsPrompt(await acquire(lease));
  });

  test('a reader that comes while a device copies for another gets a copy too, if a third one is still to come', async () => {
    const copied = gate();
    start(3, () => copied.opened);
    const lease = complete(open(3));
    const first = acquire(lease);
    await settle();
    const second = acquire(lease);
    await settle();
    expect(engine.pool.reserved).toBe(3);
    copied.open();
    const all = [await first, await second, await acquire(lease)];
    expect(all.map(({ slot }) => slot.index)).toEqual([1, 2, 0]);
    all.forEach(holdsPrompt);
    conserved();
  });

  test('a lease that ends while a device copies from it keeps its slot until then, and the copy is whole', async () => {
    const copied = gate();
    start(2, () => copied.opened);
    const lease = complete(open(2));
    const copying = acquire(lease);
    await settle();
    leases.end(lease, 'cancelled');
    conserved();
    expect([engine.pool.isHeld(0), engine.pool.reserve(1)]).toEqual([true, undefined]);
    copied.open();
    holdsPrompt(await copying);
    expect(engine.pool.isKept(0)).toBe(true);
    conserved();
  });

  test('a reader whose copy a device fails to make does not keep the others from the cache', async () => {
    start(2, () => Promise.reject(new Error('the device is lost')));
    const lease = complete(open(2));
    await expect(acquire(lease)).rejects.toThrowError('the device is lost');
    expect([lease.readersLeft, engine.pool.reserved]).toEqual([1, 1]);
    holdsPrompt(await acquire(lease));
    conserved();
  });

  test('readers without room for a copy are refused, and the cache stays for the last one', async () => {
    start(1);
    const lease = complete(open(2));
    await expect(acquire(lease)).rejects.toMatchObject({ code: 'saturated', retryAfterSeconds: 1 });
    expect(lease.readersLeft).toBe(1); // who was refused does not come again
    conserved();
    holdsPrompt(await acquire(lease));
    conserved();
  });

  test('nothing is left behind when the lease ends before a copy had its turn', async () => {
    const lease = complete(open(3));
    const turn = holdTurn();
    const acquiring = [acquire(lease), acquire(lease), acquire(lease)].map((all) => all.catch((error) => error.code));
    await settle();
    leases.end(lease, 'cancelled');
    conserved();
    turn.open();
    expect(await Promise.all(acquiring)).toEqual(['lease_unknown', 'lease_unknown', 'lease_unknown']);
    expect(kv.held).toBe(0);
    conserved();
  });

  test('room for a copy is made by evicting a kept prompt, not the one that is copied', async () => {
    start(2);
    const old = complete(open(0));
    expect(engine.pool.isKept(old.slot.index)).toBe(true);
    const lease = complete(open(2));
    const all = [await acquire(lease), await acquire(lease)];
    all.forEach(holdsPrompt);
    expect(new Set(all.map(({ slot }) => slot.index)).size).toBe(2);
    conserved();
  });
});
