/** The accounts in a real Redis, against a model of them in a few lines. */
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { type LedgerStanding, TenantLedger } from '../../../services/gateway/tenants/tenant-ledger.ts';
import type { Demand } from '../../../services/gateway/tenants/token-quota.ts';
import { RedisConnection } from '../../../services/lib/redis/connection.ts';
import { type RedisServer, redisCli, startRedis } from '../../support/redis.ts';
import { startCluster } from '../../support/redis-topologies.ts';

let server: RedisServer;
let redis: RedisConnection;
beforeAll(async () => {
  server = await startRedis();
  redis = new RedisConnection(server.url);
});
afterAll(async () => {
  redis.close();
  await server.stop();
});

let number = 0;
const demand = (more: Partial<Demand>): Demand => ({
  id: `gw.${++number}`,
  tenant: `t${number}`,
  limits: {},
  session: undefined,
  sequences: 1,
  reserved: 0,
  ...more,
});
const FOR_LONG = 600_000;
/** Longer than any machine needs. */
const SOON = { timeout: 60_000, interval: 5 };

/** What the scripts do, with the times that they tell. */
class Model {
  #tokens: number;
  #atMs = 0;
  readonly #limits: { readonly maxInflight: number; readonly tokensPerMinute: number };
  readonly #leaseMs: number;
  readonly #entries = new Map<string, { demand: Demand; expiresMs: number }>();

  constructor(limits: { maxInflight: number; tokensPerMinute: number }, leaseMs: number) {
    this.#limits = limits;
    this.#leaseMs = leaseMs;
    this.#tokens = limits.tokensPerMinute;
  }

  admit(demand: Demand, atMs: number): Omit<LedgerStanding, 'atMs'> {
    this.#advance(atMs);
    const gatewayOf = ({ id }: Demand) => id.split('.')[0];
    const demands = [...this.#entries.values()].map((entry) => entry.demand);
    const isOlder = ({ session }: Demand) => session !== undefined && session === demand.session;
    const elsewhere = demands.filter((each) => isOlder(each) && gatewayOf(each) !== gatewayOf(demand));
    const counted = [...demands.filter((each) => !isOlder(each)), ...elsewhere];
    const largest = Math.max(0, ...elsewhere.map(({ sequences }) => sequences));
    const inFlight = counted.reduce((sum, { sequences }) => sum + sequences, 0) - largest;
    const tokens = this.#tokens;
    if (inFlight + demand.sequences > this.#limits.maxInflight) return { refusedBy: 'max-inflight', inFlight, tokens };
    if (tokens < demand.reserved) return { refusedBy: 'tokens-per-minute', inFlight, tokens };
    this.#entries.set(demand.id, { demand, expiresMs: atMs + this.#leaseMs });
    this.#tokens -= demand.reserved;
    return { refusedBy: undefined, inFlight, tokens };
  }

  settle(demand: Demand, tokens: number, atMs: number): number {
    this.#advance(atMs);
    if (this.#entries.delete(demand.id)) this.#tokens += demand.reserved;
    this.#tokens = Math.min(this.#limits.tokensPerMinute, this.#tokens - tokens);
    return this.#tokens;
  }

  renew(demand: Demand, atMs: number): number {
    this.#advance(atMs);
    if (!this.#entries.has(demand.id)) this.#tokens -= demand.reserved;
    this.#entries.set(demand.id, { demand, expiresMs: atMs + this.#leaseMs });
    return this.#tokens;
  }

  #advance(atMs: number): void {
    const { tokensPerMinute } = this.#limits;
    if (this.#atMs > 0) this.#tokens += ((atMs - this.#atMs) / 60_000) * tokensPerMinute;
    this.#tokens = Math.min(tokensPerMinute, this.#tokens);
    this.#atMs = atMs;
    for (const [id, { demand, expiresMs }] of this.#entries) {
      if (expiresMs > atMs) continue;
      this.#tokens = Math.min(tokensPerMinute, this.#tokens + demand.reserved);
      this.#entries.delete(id);
    }
  }
}

test('the accounts in Redis are those of the model, whatever two gateways do, and whenever leases expire', async () => {
  // A few commands long, so that some leases expire between two of them, or so long that none does.
  const leases = fc.constantFrom(6, 60_000, 60_000);
  const limits = { maxInflight: 8, tokensPerMinute: 1_200_000 }; // 20 tokens in a ms
  const step = fc.oneof(
    fc.record({
      kind: fc.constant('admit' as const),
      sequences: fc.integer({ min: 1, max: 5 }),
      reserved: fc.nat(900_000),
      session: fc.constantFrom(undefined, undefined, 's', 't'),
    }),
    fc.record({ kind: fc.constant('settle' as const), which: fc.nat(5), tokens: fc.nat(900_000) }),
    fc.record({ kind: fc.constant('renew' as const), which: fc.nat(5) }),
    fc.record({ kind: fc.constant('pause' as const), ms: fc.integer({ min: 1, max: 5 }) }),
  );
  const seen = new Set<string | undefined>();
  const property = fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 30 }), leases, async (steps, leaseMs) => {
    const tenant = `model${++number}`;
    const ledgers = [new TenantLedger(redis, leaseMs), new TenantLedger(redis, leaseMs)];
    const model = new Model(limits, leaseMs);
    const known: Demand[] = [];
    for (const [i, one] of steps.entries()) {
      const ledger = ledgers[i % 2]!;
      if (one.kind === 'pause') await new Promise((resolve) => setTimeout(resolve, one.ms));
      else if (one.kind === 'admit') {
        const { sequences, reserved, session } = one;
        const asked = demand({ id: `gw${i % 2}.${++number}`, tenant, limits, sequences, reserved, session });
        const { atMs, tokens, ...standing } = await ledger.admit(asked);
        const expected = model.admit(asked, atMs);
        expect(standing).toEqual({ refusedBy: expected.refusedBy, inFlight: expected.inFlight });
        expect(tokens).toBeCloseTo(expected.tokens, 3);
        seen.add(standing.refusedBy);
        if (standing.refusedBy === undefined) known.push(asked);
      } else {
        const asked = known[one.which % Math.max(1, known.length)];
        if (asked === undefined) continue;
        if (one.kind === 'settle') known.splice(known.indexOf(asked), 1);
        const answer = one.kind === 'settle' ? await ledger.settle(asked, one.tokens) : await ledger.renew([asked]);
        const expected =
          one.kind === 'settle' ? model.settle(asked, one.tokens, answer.atMs) : model.renew(asked, answer.atMs);
        expect(answer.tokens).toBeCloseTo(expected, 3);
      }
    }
  });
  // Each limit is met once at least, however slow the machine is.
  const ask = { kind: 'admit' as const, sequences: 1, reserved: 0, session: undefined };
  const many = { ...ask, sequences: 5 };
  const large = { ...ask, reserved: 900_000 };
  await fc.assert(property, {
    numRuns: 62,
    examples: [
      [[many, many], 60_000],
      [[large, large], 60_000],
    ],
  });
  expect([...seen].sort()).toEqual(['max-inflight', 'tokens-per-minute', undefined]);
});

test('what a killed gateway had in flight, and what was reserved for it, is free when its leases have expired', async () => {
  const limits = { maxInflight: 4, tokensPerMinute: 600 };
  const killed = new TenantLedger(redis, 50);
  const other = new TenantLedger(redis, FOR_LONG);
  const held = demand({ limits, sequences: 4, reserved: 600 });
  await killed.admit(held);
  const next = demand({ ...held, id: 'next', sequences: 4, reserved: 600 });
  expect((await killed.renew([held])).tokens).toBeLessThan(600);
  await vi.waitUntil(async () => (await other.admit(next)).refusedBy === undefined, SOON);
});

test('a tenant leaves nothing in Redis when its bucket is full and nothing is in flight', async () => {
  const asked = demand({ limits: { tokensPerMinute: 1e9, maxInflight: 1 }, reserved: 1_000 });
  const ledger = new TenantLedger(redis, 10);
  await ledger.admit(asked);
  await ledger.settle(asked, 1_000);
  const keys = () => redisCli(server.port, 'KEYS', `*${asked.tenant}*`);
  expect(await keys()).toContain(`{tenant:${asked.tenant}}`);
  await vi.waitUntil(async () => (await keys()) === '', SOON);
});

test('two gateways that ask at once grant no more than the limit, and a limit of its own kind each', async () => {
  const ledgers = [new TenantLedger(redis, FOR_LONG), new TenantLedger(redis, FOR_LONG)];
  const tenant = 'both';
  const granted = async (limits: Demand['limits'], more: Partial<Demand>) => {
    const asked = Array.from({ length: 40 }, () => demand({ limits, ...more }));
    const standings = await Promise.all(asked.map((each, i) => ledgers[i % 2]!.admit(each)));
    return standings.filter(({ refusedBy }) => refusedBy === undefined).length;
  };
  expect(await granted({ maxInflight: 10 }, { tenant, sequences: 2 })).toBe(5);
  expect(await granted({ tokensPerMinute: 100 }, { tenant: 'tokens', reserved: 30 })).toBe(3);
});

test('a cluster takes the scripts: the key of a tenant lies in one slot', async () => {
  const cluster = await startCluster();
  const connection = new RedisConnection(cluster.url);
  try {
    const ledger = new TenantLedger(connection, FOR_LONG);
    for (const tenant of ['a', 'b', 'c', 'd']) {
      const asked = demand({ tenant, limits: { maxInflight: 1, tokensPerMinute: 60 }, reserved: 10 });
      expect(await ledger.admit(asked)).toMatchObject({ refusedBy: undefined });
      expect(await ledger.admit({ ...asked, id: 'x' })).toMatchObject({ refusedBy: 'max-inflight', inFlight: 1 });
      await ledger.renew([asked]);
      expect((await ledger.settle(asked, 0)).tokens).toBeCloseTo(60);
    }
  } finally {
    connection.close();
    await cluster.stop();
  }
}, 120_000);

test('a session at many gateways, whose news are lost, has no more than one request beyond the limit', async () => {
  const ledger = new TenantLedger(redis, FOR_LONG);
  const limits = { maxInflight: 2 };
  const at = (gateway: string) => ledger.admit(demand({ id: `${gateway}.1`, tenant: 'many', limits, session: 's' }));
  const refusals = [];
  for (const gateway of ['a', 'b', 'c', 'd', 'e']) refusals.push((await at(gateway)).refusedBy);
  expect(refusals).toEqual([undefined, undefined, undefined, 'max-inflight', 'max-inflight']);
});

test('all older requests of a session at the same gateway are about to end', async () => {
  const ledger = new TenantLedger(redis, FOR_LONG);
  const asked = () => demand({ tenant: 'one', limits: { maxInflight: 2 }, session: 's', sequences: 2 });
  for (let i = 0; i < 4; i++) expect(await ledger.admit(asked())).toMatchObject({ refusedBy: undefined, inFlight: 0 });
});
