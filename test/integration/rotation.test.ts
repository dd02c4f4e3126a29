/** Real processes whose keys and certificates are replaced under load, as Kubernetes replaces those of its Secrets. */
import { readFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { connect } from 'node:tls';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { connectPrefill } from '../../services/lib/rpc/contract.ts';
import { loadRpcSecurity, SERVICE_NAME } from '../../services/lib/rpc/credentials.ts';
import { bearer, keyEntry } from '../support/api-keys.ts';
import { type Authority, makeAuthority } from '../support/certificates.ts';
import { mountSecret, type SecretMount } from '../support/secret-mount.ts';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const WAIT = { timeout: 60_000 };

let [first, second]: [Authority, Authority] = [] as never;
let [keys, http, rpc]: [SecretMount, SecretMount, SecretMount] = [] as never;
let system: TestSystem;
let trusted: string;

/** A certificate of one authority, and the authorities whose members it trusts. */
async function pems(issuer: Authority, name: string, trusts: readonly Authority[] = [issuer]) {
  const { cert, key } = await issuer.issue(name);
  const cas = await Promise.all(trusts.map(({ ca }) => readFile(ca, 'utf8')));
  return { 'tls.crt': await readFile(cert), 'tls.key': await readFile(key), 'ca.crt': cas.join('') };
}
const keyFile = (...names: string[]) => ({ 'keys.json': JSON.stringify(names.map((name) => keyEntry(name, 'acme'))) });

beforeAll(async () => {
  [first, second] = await Promise.all([makeAuthority(), makeAuthority()]);
  trusted = (await Promise.all([first, second].map(({ ca }) => readFile(ca, 'utf8')))).join('');
  keys = await mountSecret(keyFile('kept', 'removed'));
  http = await mountSecret(await pems(first, 'localhost'));
  rpc = await mountSecret(await pems(first, SERVICE_NAME));
  const rpcFlags = { rpcCert: rpc.path('tls.crt'), rpcKey: rpc.path('tls.key'), rpcCa: rpc.path('ca.crt') };
  const tlsFlags = { tlsCert: http.path('tls.crt'), tlsKey: http.path('tls.key') };
  // Beyond loopback the certificates are what proves a service.
  const workers = { ...rpcFlags, host: '0.0.0.0', advertise: '' };
  const gateway = { ...rpcFlags, ...tlsFlags, apiKeysFile: keys.path('keys.json') };
  system = await startTestSystem(TINY_CODER, workers, { gateway });
});
afterAll(async () => {
  await system?.close();
  await Promise.all([keys, http, rpc].map((mount) => mount?.remove()));
  await Promise.all([first, second].map((authority) => authority?.remove()));
});

/** Status of one completion over a connection of its own; it throws when the answer does not come whole. */
async function complete(key: string): Promise<number> {
  const { port } = new URL(system.url);
  const headers = { 'content-type': 'application/json', ...bearer(key) };
  const answer = await new Promise<{ status: number; body: string }>((resolve, reject) => {
    const options = { ca: trusted, host: 'localhost', port, path: '/v1/completions', method: 'POST', headers };
    const call = request({ ...options, agent: false });
    call.on('error', reject);
    call.on('response', (message) => {
      text(message).then((body) => resolve({ status: message.statusCode ?? 0, body }), reject);
    });
    call.end(JSON.stringify({ prompt: 'def add(a, b):\n    return ', max_tokens: 4, temperature: 0, stream: true }));
  });
  if (answer.status === 200 && !answer.body.trimEnd().endsWith('[DONE]')) throw new Error(`broken off: ${answer.body}`);
  return answer.status;
}

/** How often each process has said that it read the set of files again. */
async function readAgain(what: string): Promise<number[]> {
  const logs = await Promise.all(
    system.processes.map(({ name }) => readFile(join(system.dir, 'logs', `${name}.log`), 'utf8')),
  );
  return logs.map((log) => log.split(`"msg":"${what}: read again`).length - 1);
}

const issuerShown = () =>
  new Promise<string>((resolve, reject) => {
    const socket = connect({ port: Number(new URL(system.url).port), host: 'localhost', rejectUnauthorized: false });
    socket.on('error', reject).on('secureConnect', () => {
      resolve(socket.getPeerX509Certificate()?.serialNumber ?? '');
      socket.destroy();
    });
  });

test('no request fails while API keys, the gateway’s certificate and the system’s authority are replaced', async () => {
  let over = false;
  const load = Array.from({ length: 3 }, async () => {
    let done = 0;
    for (; !over; done++) expect(await complete('kept')).toBe(200);
    return done;
  });
  const shownBefore = await issuerShown();
  await http.swap(await pems(second, 'localhost'));
  await vi.waitUntil(async () => (await issuerShown()) !== shownBefore, WAIT);
  // All trust both authorities, then all show the new one's certificates, then nobody trusts the old one.
  const steps = [
    await pems(first, SERVICE_NAME, [first, second]),
    await pems(second, SERVICE_NAME, [first, second]),
    await pems(second, SERVICE_NAME),
  ];
  for (const [i, step] of steps.entries()) {
    await rpc.swap(step);
    await vi.waitUntil(async () => (await readAgain('rpc_tls')).every((times) => times > i), WAIT);
  }
  expect(await complete('removed')).toBe(200);
  await keys.swap(keyFile('kept', 'added'));
  await vi.waitUntil(async () => (await complete('added')) === 200, WAIT);
  expect(await complete('removed')).toBe(401);
  // A worker that comes back proves itself, to callers too, by what is new.
  const [prefill] = system.processes.filter(({ name }) => name.startsWith('prefill'));
  over = true;
  expect((await Promise.all(load)).every((done) => done > 0)).toBe(true);
  await prefill!.restart();
  await vi.waitUntil(async () => (await complete('kept')) === 200, WAIT);
  const describe = async (authority: Authority) => {
    const { cert, key } = await authority.issue(SERVICE_NAME);
    const files = { rpcCert: cert, rpcKey: key, rpcCa: second.ca, rpcSecretFile: '' };
    const client = connectPrefill(prefill!.address.replace('0.0.0.0', '127.0.0.1'), await loadRpcSecurity(files));
    return client.describe(AbortSignal.timeout(20_000)).finally(() => client.close());
  };
  expect((await describe(second)).role).toBe('prefill');
  await expect(describe(first)).rejects.toMatchObject({ code: 'worker_lost' });
});

test('a gateway whose key file is spoiled goes on with the keys before, says so, and reads it again on SIGHUP', async () => {
  await keys.swap({ 'keys.json': '[{"key_sha256": "nonsense"}]' });
  const gateway = system.processes.find(({ name }) => name.startsWith('gateway'))!;
  const log = () => readFile(join(system.dir, 'logs', `${gateway.name}.log`), 'utf8');
  await vi.waitUntil(async () => (await log()).includes('api_keys: the files are wrong'), WAIT);
  expect(await complete('kept')).toBe(200);
  process.kill(gateway.pid!, 'SIGHUP');
  await vi.waitUntil(async () => (await log()).split('api_keys: the files are wrong').length === 3, WAIT);
  expect(await complete('kept')).toBe(200);
  expect(gateway.pid).toBeDefined();
});
