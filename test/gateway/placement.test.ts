import { describe, expect, test } from 'vitest';
import { WorkerPool } from '../../services/gateway/placement.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { DecodeClient, PrefillClient } from '../../services/lib/rpc/contract.ts';
import { keepingLog } from './fake-gateway.ts';

const OURS = 'a'.repeat(64);

/** Workers that answer with what `answers` says about their address now. */
function pool(
  answers: Record<string, { fingerprint?: string; capacity?: number } | Error>,
  prefill: string[],
  decode: string[],
) {
  const client = (address: string) =>
    ({
      describe: async () => {
        const answer = answers[address];
        if (answer === undefined) throw new ServingError('worker_lost', `${address}: refused`);
        if (answer instanceof Error) throw answer;
        return { fingerprint: OURS, capacity: 100, ...answer };
      },
      close: () => {},
    }) as unknown as PrefillClient & DecodeClient;
  const workers = new WorkerPool({
    fingerprint: OURS,
    connectPrefill: client,
    connectDecode: client,
    answerTimeoutMs: 1000,
    log: keepingLog([]),
  });
  workers.setPrefill(prefill);
  workers.setDecode(decode);
  return workers;
}

describe('workers', () => {
  test('are usable once they have answered, and no longer when they do not', async () => {
    const answers: Parameters<typeof pool>[0] = {};
    const workers = pool(answers, ['p'], ['d']);
    expect(() => workers.place(1, 1)).toThrow(/decode worker: d has not answered yet/);
    await workers.refresh();
    expect(() => workers.capacity).toThrow(/p does not answer \(p: refused\)/);
    answers['p'] = { capacity: 50 };
    answers['d'] = {};
    await workers.refresh();
    expect(workers.capacity).toBe(50);
    expect(workers.place(1, 1).prefill.address).toBe('p');
    delete answers['d'];
    await workers.refresh();
    expect(workers.usable).toBe(false);
    expect(() => workers.place(1, 1)).toThrow(expect.objectContaining({ code: 'no_worker', retryAfterSeconds: 1 }));
  });

  test('of another bundle are not used, and the message has both fingerprints', async () => {
    const workers = pool({ p: {}, d: { fingerprint: 'b'.repeat(64) } }, ['p'], ['d']);
    await workers.refresh();
    expect(() => workers.place(1, 1)).toThrow(`d serves bundle ${'b'.repeat(64)}, this gateway bundle ${OURS}`);
  });

  test('none configured is said so', () => {
    expect(() => pool({}, [], []).capacity).toThrow(/no prefill worker: none is configured/);
  });

  test('share work by what is in flight, and take turns when equal', async () => {
    const workers = pool({ p1: {}, p2: {}, d1: {}, d2: {} }, ['p1', 'p2'], ['d1', 'd2']);
    await workers.refresh();
    const big = workers.place(1000, 1);
    const small = workers.place(10, 3);
    expect([big.prefill.address, small.prefill.address]).toEqual(['p1', 'p2']);
    expect(small.decodes.map(({ address }) => address)).toEqual(['d2', 'd1', 'd2']);
    expect(workers.place(10, 1).prefill.address).toBe('p2');
    big.prefill.release();
    big.prefill.release();
    expect(workers.place(5, 1).prefill.address).toBe('p1');
  });

  test('that do both keep a request to themselves', async () => {
    const both = ['c1', 'c2'];
    const workers = pool({ c1: {}, c2: {} }, both, both);
    await workers.refresh();
    for (let i = 0; i < 3; i++) {
      const { prefill, decodes } = workers.place(1, 2);
      expect(decodes.map(({ address }) => address)).toEqual([prefill.address, prefill.address]);
    }
  });

  test('that say they are gone are left alone until they answer; other failures change nothing', async () => {
    const workers = pool({ p: {}, d: {} }, ['p'], ['d']);
    await workers.refresh();
    workers.place(1, 1).prefill.failed(new ServingError('saturated', 'full'));
    expect(workers.usable).toBe(true);
    workers.place(1, 1).prefill.failed(new ServingError('draining', 'bye'));
    expect(workers.usable).toBe(false);
    await workers.refresh();
    expect(workers.usable).toBe(true);
  });
});
