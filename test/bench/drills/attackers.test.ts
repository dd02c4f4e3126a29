/** The process of the hostile tenants: it runs from `dist/`. */
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { getPriority } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import type { Attackers as AttackersClass } from '../../../bench/drills/attackers.ts';
import { ATTACKERS_NICE, hostileTenants } from '../../../bench/drills/hostile-rotation.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';

const built = pathToFileURL(join(PACKAGE_ROOT, 'dist/bench/drills/attackers.js')).href;
const { Attackers } = (await import(built)) as { Attackers: typeof AttackersClass };

/** A server that answers nothing. @returns its URL, and a promise of the first key that a request carries. */
async function door() {
  const server = createServer();
  const heard = new Promise<string>((resolve) => {
    server.on('connection', (socket) => {
      socket.on('error', () => {});
      socket.on('data', (part) => {
        const [, key] = /authorization: Bearer (\S+)/i.exec(part.toString('latin1')) ?? [];
        if (key !== undefined) resolve(key);
      });
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => void server.close());
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, heard };
}

test('attackers send from a process that steps back, and its times are those of the run', async () => {
  const { url, heard } = await door();
  const hostile = hostileTenants(50).slice(0, 1);
  const attackers = await Attackers.start({ url, capacity: 64, hostile, seed: 1 }, () => 1_000_000);
  onTestFinished(() => attackers.kill());
  expect(await heard).toBe(hostile[0]!.apiKey);
  expect(getPriority(attackers.pid!)).toBe(ATTACKERS_NICE);
  const { attackers: counts, turns } = await attackers.end();
  expect(counts.map(({ tenant }) => tenant)).toEqual(['hostile-1']);
  expect(counts[0]!.sent).toBeGreaterThan(0);
  expect(turns.map(({ attack }) => attack)).toEqual(['requests for 64 choices']);
  expect(turns[0]!.fromMs).toBeGreaterThanOrEqual(1_000_000);
  expect(turns[0]!.toMs).toBeGreaterThan(turns[0]!.fromMs);
  await expect.poll(() => isAlive(attackers.pid!), { timeout: 60_000 }).toBe(false);
}, 120_000);

test('attackers whose process is gone are reported as an error, not as attackers that did nothing', async () => {
  const { url } = await door();
  const hostile = hostileTenants(50);
  const attackers = await Attackers.start({ url, capacity: 64, hostile, seed: 1 }, () => 0);
  process.kill(attackers.pid!, 'SIGKILL');
  await expect(attackers.end()).rejects.toMatchObject({ code: 'internal', message: /^the attackers failed at end/ });
}, 120_000);

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
