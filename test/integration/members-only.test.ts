/**
 * What another local user can do with the ports of a system: nothing. Real processes; the caller knows every address,
 * the protocol, and the bundle.
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { writeSystemSecret } from '../../services/lib/process/system-secret.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { connectDecode, connectIndexer, connectKv, connectPrefill } from '../../services/lib/rpc/contract.ts';
import type { RpcSecurity } from '../../services/lib/rpc/credentials.ts';
import { samplingMessage } from '../../services/lib/rpc/messages.ts';
import { ServiceProcess } from '../../services/supervisor.ts';
import { redisCli, startRedis } from '../support/redis.ts';
import { memberOf, startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const KEY = 'k-0123456789abcdef0123456789abcdef';
const AUTHORIZED = { authorization: `Bearer ${KEY}`, 'content-type': 'application/json' };
const PATIENT = 300_000;
const refused = { code: 'not_a_member' };
const soon = () => AbortSignal.timeout(60_000);

let [dir, system]: [string, TestSystem] = [] as never;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-doors-'));
  const apiKeysFile = join(dir, 'keys.json');
  const hash = createHash('sha256').update(KEY).digest('hex');
  await writeFile(apiKeysFile, JSON.stringify([{ key_sha256: hash, tenant: 'acme', repos: ['*'] }]));
  const store = `lmdb:${join(dir, 'store')}`;
  const workers = { slots: 2, capacity: 512, logLevel: 'trace' };
  const indexer = { store, logLevel: 'trace' };
  system = await startTestSystem(TINY_CODER, workers, { gateway: { apiKeysFile, store, logLevel: 'trace' }, indexer });
}, PATIENT);
afterAll(async () => {
  await system?.close();
  await rm(dir, { recursive: true, force: true });
});

const addressOf = (role: string) => system.processes.find(({ name }) => name.startsWith(role))!.address;

/** A port on which somebody waits for a connection. */
async function trap() {
  const seen = { address: '', connections: 0 };
  const server = createServer((socket) => {
    seen.connections++;
    socket.destroy();
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  seen.address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  onTestFinished(() => void server.close());
  return seen;
}

const complete = (url: string, prompt = 'def add(a, b):') =>
  fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: AUTHORIZED,
    body: JSON.stringify({ prompt, max_tokens: 4, temperature: 0 }),
  });

async function drained(events: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of events);
}

/** Asks a decode worker to fetch KV from an address of the caller's choice. */
function decodeFrom(address: string, security?: RpcSecurity): Promise<void> {
  const decode = connectDecode(addressOf('decode'), security);
  onTestFinished(() => decode.close());
  const { fingerprint } = system.bundle.manifest;
  const kv = { address, leaseId: 'forged', fingerprint, positions: 4, leaseMs: 1_000, seal: Buffer.alloc(32, 1) };
  const request = { requestId: 'x', kv, choice: 0, sampling: samplingMessage(GREEDY), maxTokens: 4 };
  return drained(decode.decode(request, soon()));
}

describe('a local process without the secret', () => {
  test('a local process can neither compute prompts nor read KV', { timeout: PATIENT }, async () => {
    const prefill = connectPrefill(addressOf('prefill'));
    const kv = connectKv(addressOf('prefill'));
    onTestFinished(() => prefill.close());
    onTestFinished(() => kv.close());
    const { fingerprint } = system.bundle.manifest;
    const sampling = samplingMessage(GREEDY);
    const prompt = { requestId: 'x', fingerprint, tokenIds: [1, 2, 3], choices: [sampling], promptLogprobs: -1 };
    await expect(prefill.describe(soon())).rejects.toMatchObject(refused);
    await expect(drained(prefill.prefill({ ...prompt, readers: 1 }, soon()))).rejects.toMatchObject(refused);
    await expect(drained(kv.pull({ leaseId: 'x', fingerprint }, soon()))).rejects.toMatchObject(refused);
    await expect(kv.renew('x', soon())).rejects.toMatchObject(refused);
    expect((await complete(system.url)).status).toBe(200);
  });

  test('a local process can neither replace nor delete an index', { timeout: PATIENT }, async () => {
    const repo = `${system.url}/v1/repos/private`;
    const content = 'def hold(inventory, cart, now):\n    return inventory.hold(cart, now)\n';
    const body = JSON.stringify({ files: [{ path: 'secret.py', content }] });
    const put = await fetch(repo, { method: 'PUT', headers: AUTHORIZED, body });
    expect([put.status, await put.text()]).toEqual([200, expect.stringContaining('version')]);
    const look = async () => (await fetch(repo, { headers: AUTHORIZED })).text();
    const before = await look();
    const indexer = connectIndexer(addressOf('indexer'));
    onTestFinished(() => indexer.close());
    async function* upload() {
      yield { start: { requestId: 'x', tenant: 'acme', repo: 'private', format: 'json' } };
      yield { data: Buffer.from(body.replace('hold', 'evil')) };
    }
    await expect(drained(indexer.index(upload(), soon()))).rejects.toMatchObject(refused);
    await expect(indexer.delete({ tenant: 'acme', repo: 'private' }, soon())).rejects.toMatchObject(refused);
    await expect(indexer.describe(soon())).rejects.toMatchObject(refused);
    expect(await look()).toBe(before);
  });

  test('a local process cannot make a decode worker connect anywhere', { timeout: PATIENT }, async () => {
    const seen = await trap();
    await expect(decodeFrom(seen.address)).rejects.toMatchObject(refused);
    expect(seen.connections).toBe(0);
  });

  test('the refusals are in the log of the worker, and say who was refused and why', async () => {
    const log = await readFile(join(system.dir, 'logs', 'decode-0.log'), 'utf8');
    const line = log.split('\n').find((each) => each.includes('not a member')) ?? '{}';
    const { address, reason } = JSON.parse(line);
    expect([address, reason]).toEqual([expect.stringMatching(/^127\.0\.0\.1:\d+$/), expect.stringContaining('secret')]);
  });
});

test('a member cannot make a decode worker connect to an address that no prefill worker gave', async () => {
  const seen = await trap();
  await expect(decodeFrom(seen.address, await memberOf(system))).rejects.toMatchObject({ code: 'kv_handle_untrusted' });
  expect(seen.connections).toBe(0);
  expect((await complete(system.url)).status).toBe(200);
}, 60_000);

test('the secret is in no argument and no log, and only its user can read its file', async () => {
  const file = system.rpcSecretFile;
  const secret = (await readFile(file, 'utf8')).trim();
  expect(secret).toMatch(/^[0-9a-f]{64}$/);
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  const logs = (await readdir(join(system.dir, 'logs'))).filter((name) => name.endsWith('.log'));
  expect(logs.length).toBeGreaterThanOrEqual(4);
  const texts = logs.map((name) => join(system.dir, 'logs', name));
  const processes = system.processes.flatMap(({ pid }) => [`/proc/${pid}/cmdline`, `/proc/${pid}/environ`]);
  for (const path of [...texts, ...processes]) {
    expect([path, (await readFile(path, 'utf8')).includes(secret)]).toEqual([path, false]);
  }
}, 60_000);

describe('a cluster with a secret, whose workers are found by a registry', () => {
  test('a made-up worker in the registry gets no connection', { timeout: PATIENT }, async () => {
    const [redis, seen, rpcSecretFile] = [await startRedis(), await trap(), join(dir, 'cluster-secret')];
    onTestFinished(() => redis.stop());
    await writeSystemSecret(rpcSecretFile);
    const common = { model: join(system.dir, 'bundle'), port: 0, threads: 1, rpcSecretFile };
    const logs = await mkdtemp(join(dir, 'cluster-'));
    const start = async (name: string, role: 'colocated' | 'gateway', flags: object) => {
      const process = new ServiceProcess(name, role, { ...common, ...flags }, { logs });
      onTestFinished(() => process.stop());
      await process.start();
      return process;
    };
    const forge = (role: string, entry: string) =>
      redisCli(redis.port, 'ZADD', `llavacode:workers:${role}`, '9999999999999', entry);
    for (const role of ['prefill', 'decode']) await forge(role, seen.address);
    await start('worker', 'colocated', { registry: redis.url, slots: 2, capacity: 512 });
    const found = { prefillWorkers: redis.url, decodeWorkers: redis.url, store: `lmdb:${join(dir, 'other-store')}` };
    const gateway = await start('gateway', 'gateway', found);
    for (let i = 0; i < 10; i++) expect((await complete(`http://${gateway.address}`, `a${i} = (`)).status).toBe(200);
    expect(await redisCli(redis.port, 'ZRANGE', 'llavacode:workers:prefill', '0', '-1')).toContain(seen.address);
    expect(seen.connections).toBe(0);
    expect(await readFile(join(logs, 'gateway.log'), 'utf8')).toContain('no worker of this system has made');
  });
});
