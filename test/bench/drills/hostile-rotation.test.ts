import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { expect, onTestFinished, test, vi } from 'vitest';
import { attackInTurn, hostileTenants } from '../../../bench/drills/hostile-rotation.ts';
import type { AttackTurn } from '../../../bench/drills/waits.ts';

test('hostile tenants go from attack to attack, each with its own key, until they are told to stop', async () => {
  const heads = new Set<string>();
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.on('data', (part) => {
      const [, key] = /authorization: Bearer (\S+)/i.exec(part.toString('latin1')) ?? [];
      if (key !== undefined) heads.add(key);
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => void server.close());
  const hostile = hostileTenants(50);
  expect(hostile.map(({ limits }) => limits)).toEqual(Array(2).fill({ max_inflight: 64, tokens_per_minute: 50 }));
  const { port } = server.address() as AddressInfo;
  const rotation = { url: `http://127.0.0.1:${port}`, capacity: 64, hostile, seed: 1 };
  const over = new AbortController();
  const timers = vi.spyOn(globalThis, 'setTimeout');
  const told: AttackTurn[] = [];
  const running = attackInTurn(
    rotation,
    over.signal,
    () => 7,
    (turn) => told.push(turn),
  );
  await vi.waitUntil(() => heads.size === 2, { timeout: 60_000 });
  expect(heads).toEqual(new Set(hostile.map(({ apiKey }) => apiKey)));
  // The turns of both tenants end at their time.
  const turns = () => timers.mock.calls.filter(([, ms]) => ms === 10_000);
  expect(turns()).toHaveLength(2);
  for (const [end] of turns()) end();
  await vi.waitUntil(() => turns().length === 4, { timeout: 60_000 });
  over.abort();
  expect((await running).map((counts) => counts.tenant)).toEqual(['hostile-1', 'hostile-2']);
  const first = { fromMs: 7, toMs: 7 };
  const attacks = ['requests for 64 choices', 'clients that hang up at once'];
  expect(told.slice(0, 2)).toEqual(expect.arrayContaining(attacks.map((attack) => ({ attack, ...first }))));
  expect(told).toHaveLength(4);
});
