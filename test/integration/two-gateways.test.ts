/** Two gateways over one Redis and one worker, all of them real processes: decode slots are shared over both. */
import { createHash } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { writeSystemSecret } from '../../services/lib/process/system-secret.ts';
import { ServiceProcess } from '../../services/supervisor.ts';
import { startRedis } from '../support/redis.ts';
import { TINY_CODER } from '../support/system.ts';

const PATIENT = 600_000;
const KEYS = { long: 'k-long-0123456789abcdef0123456789', short: 'k-short-0123456789abcdef012345678' };
const SLOTS = 2;

/** Completes greedily, to the last token. @returns the texts of all choices. */
async function complete(url: string, tenant: keyof typeof KEYS, body: object): Promise<string[]> {
  const answer = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${KEYS[tenant]}`, 'content-type': 'application/json' },
    body: JSON.stringify({ prompt: 'def add(a, b):', temperature: 0, ignore_eos: true, ...body }),
  });
  const { choices, error } = (await answer.json()) as {
    choices?: { text: string; finish_reason: string }[];
    error?: { code: string };
  };
  expect([answer.status, error?.code, choices?.every((choice) => choice.finish_reason === 'length')]).toEqual([
    200,
    undefined,
    true,
  ]);
  return choices!.map(({ text }) => text);
}

async function preemptions(url: string): Promise<number> {
  const headers = { authorization: `Bearer ${KEYS.short}` };
  const text = await (await fetch(`${url}/metrics`, { headers })).text();
  return Number(/^vllm:num_preemptions_total(?:\{[^}]*\})? (\d+)$/m.exec(text)?.[1] ?? Number.NaN);
}

test('a tenant with all slots through one gateway makes way for one at another, and loses no token', {
  timeout: PATIENT,
}, async () => {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-two-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const redis = await startRedis();
  onTestFinished(() => redis.stop());
  const [model, rpcSecretFile, apiKeysFile] = [join(dir, 'bundle'), join(dir, 'secret'), join(dir, 'keys.json')];
  await exportBundle({ llm: TINY_CODER, to: model, precision: 'fp32' });
  await writeSystemSecret(rpcSecretFile);
  const hash = (key: string) => createHash('sha256').update(key).digest('hex');
  const keys = Object.entries(KEYS).map(([tenant, key]) => ({ key_sha256: hash(key), tenant, repos: ['*'] }));
  await writeFile(apiKeysFile, JSON.stringify(keys));
  const common = { model, port: 0, threads: 1, rpcSecretFile };
  const start = async (name: string, role: 'colocated' | 'gateway', flags: object) => {
    const process = new ServiceProcess(name, role, { ...common, ...flags }, { logs: dir });
    onTestFinished(() => process.stop());
    await process.start();
    return `http://${process.address}`;
  };
  await start('worker', 'colocated', { registry: redis.url, slots: SLOTS, capacity: 1024 });
  const found = { prefillWorkers: redis.url, decodeWorkers: redis.url, store: redis.url, apiKeysFile };
  const patience = { requestTimeoutMs: PATIENT, targetTtftMs: PATIENT };
  const first = await start('gateway-0', 'gateway', { ...found, ...patience });
  const second = await start('gateway-1', 'gateway', { ...found, ...patience });

  const long = { n: 3 * SLOTS, max_tokens: 900 };
  const [alone] = await complete(first, 'long', { ...long, n: 1 });
  let over = false;
  const flood = (async () => {
    const texts: string[] = [];
    do texts.push(...(await complete(first, 'long', long)));
    while (!over);
    return texts;
  })();
  flood.catch(() => {}); // it is awaited below
  try {
    await vi.waitUntil(
      async () => {
        await complete(second, 'short', { max_tokens: 4 });
        return (await preemptions(first)) > 0;
      },
      { timeout: PATIENT / 2, interval: 10 },
    );
  } finally {
    over = true;
  }
  // The gateway at which nobody but the small tenant waits has nothing to give.
  expect(await preemptions(second)).toBe(0);
  const texts = await flood;
  expect(new Set(texts)).toEqual(new Set([alone]));
});
