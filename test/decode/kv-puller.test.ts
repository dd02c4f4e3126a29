/** The connections that a puller keeps to prefill workers. */
import { expect, test, vi } from 'vitest';
import { KvPuller } from '../../services/decode/kv-puller.ts';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { KvPool, type KvSlot } from '../../services/lib/kv/pool.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import type * as Contract from '../../services/lib/rpc/contract.ts';
import { gate, LAYOUT, settle } from '../support/fake-engine.ts';
import { FINGERPRINT, NEVER } from '../support/workers.ts';

/** Addresses of connections, in order of opening and of closing. */
const opened: string[] = [];
const closed: string[] = [];
const held = gate();

vi.mock('../../services/lib/rpc/contract.ts', async (original) => ({
  ...(await original<typeof Contract>()),
  connectKv: (address: string): Contract.KvClient => {
    opened.push(address);
    return {
      // biome-ignore lint/correctness/useYield: the holder sends nothing
      pull: async function* () {
        if (address === 'busy:1') await held.opened;
        throw new ServingError('lease_unknown', 'no such lease');
      },
      release: async () => {},
      renew: async () => {},
      close: () => void closed.push(address),
    };
  },
}));

test('a puller reuses connections and closes only idle ones, those used least recently first', async () => {
  const pool = new KvPool(new CpuKvStore(LAYOUT, 1, 8));
  const puller = new KvPuller(pool, FINGERPRINT, createLogger('test', 'silent'));
  const pull = (address: string) => {
    const handle = {
      address,
      leaseId: 'x',
      fingerprint: FINGERPRINT,
      positions: 1,
      leaseMs: 1000,
      seal: Buffer.alloc(0),
    };
    return puller.pull(handle, pool.reserve(1) ?? ({ index: 0 } as KvSlot), NEVER).catch(() => {});
  };
  const busy = pull('busy:1');
  for (let i = 0; i < 64; i++) await pull(`idle:${i}`);
  await pull('idle:0');
  expect(opened).toHaveLength(65);
  expect(closed).toEqual([]);
  await pull('idle:64');
  expect(closed).toEqual(['idle:1']);
  held.open();
  await busy;
  await settle();
  expect(closed).toEqual(['idle:1', 'idle:2']);
  puller.close();
  expect(closed.toSorted()).toEqual(opened.toSorted());
});
