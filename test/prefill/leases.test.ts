/** Staged KV caches: every lease ends once, for one reason, and leaves nothing behind. */
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { positionBytes } from '../../services/lib/kv/layout.ts';
import { KvPool, type KvSlot } from '../../services/lib/kv/pool.ts';
import { PrefixCache } from '../../services/lib/kv/prefix.ts';
import { metrics } from '../../services/lib/process/metrics.ts';
import { type Lease, type LeaseEnd, LeaseTable } from '../../services/prefill/leases.ts';
import { settle } from '../support/fake-engine.ts';

const LAYOUT = { layers: 1, kvHeads: 2, headDim: 4 };
const TTL_MS = 1000;
const NEVER = new AbortController().signal;

const gauges = async () => ({
  bytes: (await metrics.stagedBytes.get()).values[0]?.value,
  age: (await metrics.stagedAge.get()).values[0]?.value,
  usage: (await metrics.kvUsage.get()).values[0]?.value,
});
const ended = async (reason: LeaseEnd) =>
  (await metrics.leasesEnded.get()).values.find(({ labels }) => labels.reason === reason)?.value ?? 0;

let pool: KvPool;
let freed: number;
let leases: LeaseTable;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
  pool = new KvPool(new CpuKvStore(LAYOUT, 4, 16));
  freed = 0;
  pool.wait(() => {
    freed++;
    return false;
  });
  leases = new LeaseTable(pool, new PrefixCache(pool), TTL_MS);
  metrics.leasesEnded.reset();
});
afterEach(() => {
  vi.useRealTimers();
});

const open = (readers = 1) => leases.open(pool.reserve(10) as KvSlot, 10, readers);

function complete(lease: Lease): Lease {
  lease.advance(10);
  leases.complete(lease, [3]);
  return lease;
}

/** Checks that nothing is staged, every slot is free, and one end for this reason was counted. */
async function expectEnded(reason: LeaseEnd): Promise<void> {
  expect(leases.size).toBe(0);
  expect(freed).toBe(1);
  pool.assertConserved(0);
  expect(await gauges()).toEqual({ bytes: 0, age: 0, usage: 0 });
  expect(await ended(reason)).toBe(1);
  expect(vi.getTimerCount()).toBe(0);
}

describe('the end of a lease', () => {
  test('a lease is released when the last reader has its copy', async () => {
    const lease = complete(open(2));
    expect(leases.release(lease.id)).toBe(1);
    expect(leases.size).toBe(1);
    expect(leases.release(lease.id)).toBe(0);
    await lease.released;
    await expectEnded('released');
    expect(() => leases.release(lease.id)).toThrowError(expect.objectContaining({ code: 'lease_unknown' }));
    expect(() => lease.assertLive()).toThrowError(expect.objectContaining({ code: 'lease_unknown' }));
  });

  test('a lease without readers is released as soon as it is computed', async () => {
    const lease = open(0);
    lease.advance(10);
    expect(leases.size).toBe(1);
    leases.complete(lease, [3]);
    await lease.released;
    await expectEnded('released');
  });

  test('a lease whose readers all gave up is released only when computed, because the first token is still wanted', async () => {
    const lease = open(1);
    expect(leases.release(lease.id)).toBe(0);
    lease.assertLive();
    complete(lease);
    await lease.released;
    await expectEnded('released');
  });

  test('a lease is cancelled by the caller of Prefill', async () => {
    const lease = complete(open());
    leases.end(lease, 'cancelled');
    await expect(lease.released).rejects.toMatchObject({ code: 'lease_unknown' });
    await expectEnded('cancelled');
  });

  test('a lease that failed reports the cause', async () => {
    const lease = open();
    leases.end(lease, 'failed', new Error('the graph broke'));
    await expect(lease.released).rejects.toMatchObject({ code: 'internal', message: 'the graph broke' });
    await expectEnded('failed');
  });

  test('a lease expires when no decoder comes in time', async () => {
    const lease = complete(open());
    vi.advanceTimersByTime(TTL_MS - 1);
    expect(leases.size).toBe(1);
    vi.advanceTimersByTime(1);
    await expect(lease.released).rejects.toMatchObject({ code: 'lease_expired' });
    await expectEnded('expired');
    expect(() => leases.get(lease.id)).toThrowError(
      expect.objectContaining({ code: 'lease_unknown', message: expect.stringContaining(lease.id) }),
    );
  });

  test('a lease does not expire while it is used', () => {
    const lease = complete(open());
    for (let i = 0; i < 5; i++) {
      vi.advanceTimersByTime(TTL_MS - 1);
      leases.touch(lease);
    }
    expect(leases.get(lease.id)).toBe(lease);
    vi.advanceTimersByTime(TTL_MS);
    expect(leases.size).toBe(0);
  });

  test('a lease does not expire while its prompt computes, and its time counts from the end of that', () => {
    const lease = open();
    vi.advanceTimersByTime(9.5 * TTL_MS);
    lease.assertLive();
    complete(lease);
    vi.advanceTimersByTime(TTL_MS - 1);
    lease.assertLive();
    vi.advanceTimersByTime(1);
    expect(() => lease.assertLive()).toThrowError(expect.objectContaining({ code: 'lease_expired' }));
  });

  test('a lease is released when its last reader adopts the slot, which stays held', async () => {
    const lease = complete(open(2));
    leases.release(lease.id);
    expect(leases.adopt(lease)).toBe(lease.slot);
    await lease.released;
    expect(leases.size).toBe(0);
    expect(freed).toBe(0);
    pool.assertConserved(1);
    expect(await gauges()).toEqual({ bytes: 0, age: 0, usage: 0.25 });
    expect(await ended('released')).toBe(1);
    leases.end(lease, 'cancelled'); // by the caller of Prefill, in the same moment
    expect(() => leases.adopt(lease)).toThrowError(expect.objectContaining({ code: 'lease_unknown' }));
    pool.assertConserved(1);
    lease.slot.release();
    expect(vi.getTimerCount()).toBe(0);
  });

  test('a reader that comes after the end of a lease does not end it again', async () => {
    const lease = complete(open(2));
    leases.end(lease, 'expired');
    expect(leases.readerDone(lease)).toBe(1);
    await expectEnded('expired');
  });

  test('ending a lease again changes nothing and does not free the slot of its next holder', async () => {
    const lease = complete(open());
    leases.release(lease.id);
    const other = pool.reserve(10);
    expect(other?.index).toBe(lease.slot.index);
    leases.end(lease, 'cancelled');
    leases.end(lease, 'failed', new Error('late'));
    leases.touch(lease);
    expect(freed).toBe(1);
    pool.assertConserved(1);
    expect(await ended('cancelled')).toBe(0);
    await lease.released;
  });
});

test('the gauges show how many bytes are staged and for how long', async () => {
  const a = open();
  vi.advanceTimersByTime(300);
  leases.open(pool.reserve(6) as KvSlot, 6, 1);
  vi.advanceTimersByTime(200);
  leases.observe();
  expect(await gauges()).toEqual({ bytes: 16 * positionBytes(LAYOUT), age: 0.5, usage: 0.5 });
  leases.end(a, 'cancelled');
  expect(await gauges()).toEqual({ bytes: 6 * positionBytes(LAYOUT), age: 0.2, usage: 0.25 });
});

describe('a pull', () => {
  test('a pull waits for positions beyond those it has, then for the first tokens', async () => {
    const lease = open();
    const seen: unknown[] = [];
    const reading = (async () => {
      seen.push(await lease.beyond(0, NEVER));
      seen.push(await lease.beyond(4, NEVER));
      await lease.completed(NEVER);
      seen.push(lease.firstTokenIds);
    })();
    await settle();
    expect(seen).toEqual([]);
    lease.advance(4);
    await settle();
    expect(seen).toEqual([4]);
    lease.advance(10);
    await settle();
    expect(seen).toEqual([4, 10]);
    vi.advanceTimersByTime(3);
    leases.complete(lease, [1, 2]);
    await reading;
    expect(seen).toEqual([4, 10, [1, 2]]);
    expect(lease.sinceComputedUs).toBe(3000);
  });

  test('a pull stops waiting when the lease ends', async () => {
    const lease = open();
    const waits = [lease.beyond(0, NEVER), lease.completed(NEVER)];
    leases.end(lease, 'failed', new Error('the graph broke'));
    for (const wait of waits) await expect(wait).rejects.toThrowError('the graph broke');
    await expect(lease.beyond(0, NEVER)).rejects.toThrowError('the graph broke');
  });

  test('a pull stops waiting when its own caller leaves', async () => {
    const lease = open();
    const caller = new AbortController();
    const waits = [lease.beyond(0, caller.signal), lease.completed(caller.signal)];
    caller.abort(new Error('hung up'));
    for (const wait of waits) await expect(wait).rejects.toThrowError('hung up');
    await expect(lease.beyond(0, caller.signal)).rejects.toThrowError('hung up');
    lease.assertLive(); // others may still come
  });

  test('a pull gets nothing once the lease has ended, because the slot may hold another prompt', async () => {
    const lease = open();
    const wait = lease.beyond(0, NEVER);
    lease.advance(5);
    leases.end(lease, 'cancelled');
    await expect(wait).rejects.toMatchObject({ code: 'lease_unknown' });
  });
});
