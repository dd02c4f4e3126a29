/** Mutual TLS between services, over real sockets. */
import { copyFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import { afterAll, expect, onTestFinished, test } from 'vitest';
import { connectDecode } from '../../services/lib/rpc/contract.ts';
import {
  loadRpcSecurity,
  loadServingSecurity,
  PLAINTEXT,
  type RpcSecurity,
  SERVICE_NAME,
} from '../../services/lib/rpc/credentials.ts';
import { mount, serveRpc, streaming, unary } from '../../services/lib/rpc/server.ts';
import { type Authority, makeAuthority } from '../support/certificates.ts';

const [ours, others] = await Promise.all([makeAuthority(), makeAuthority()]);
afterAll(() => Promise.all([ours.remove(), others.remove()]));

async function securityOf(authority: Authority, name = SERVICE_NAME, trusted = authority): Promise<RpcSecurity> {
  const { cert, key } = await authority.issue(name);
  return loadRpcSecurity({ rpcCert: cert, rpcKey: key, rpcCa: trusted.ca, rpcSecretFile: '' });
}
const member = await securityOf(ours);

async function serve(security: RpcSecurity): Promise<string> {
  const methods = { Decode: streaming(async function* () {}), Describe: unary(async () => ({ model: 'm' })) };
  const server = await serveRpc('127.0.0.1', 0, [mount.decode(methods)], security);
  onTestFinished(() => server.close(AbortSignal.abort()));
  return server.address;
}

async function ask(address: string, security: RpcSecurity): Promise<string> {
  const client = connectDecode(address, security);
  onTestFinished(() => client.close());
  return (await client.describe(new AbortController().signal)).model;
}

test('members of one authority accept each other at any address', async () => {
  const address = await serve(member);
  expect(await ask(address, member)).toBe('m');
  expect(await ask(address.replace('127.0.0.1', 'localhost'), member)).toBe('m');
});

test.each([
  ['a caller without a certificate', async () => PLAINTEXT],
  ['a member of another authority', () => securityOf(others)],
  ['a member of another authority that trusts ours', () => securityOf(others, SERVICE_NAME, ours)],
])('%s is not served', async (_, caller) => {
  await expect(ask(await serve(member), await caller())).rejects.toMatchObject({ code: 'worker_lost' });
});

test.each([
  ['without a certificate', async () => PLAINTEXT],
  ['of another authority', () => securityOf(others)],
  ['whose certificate is for another name', () => securityOf(ours, 'mail')],
])('a server %s is refused by its callers', async (_, server) => {
  await expect(ask(await serve(await server()), member)).rejects.toMatchObject({ code: 'worker_lost' });
});

test('a TLS client without a certificate is disconnected', async () => {
  const [host = '', port] = (await serve(member)).split(':');
  const socket = connect({ host, port: Number(port), rejectUnauthorized: false, ALPNProtocols: ['h2'] });
  onTestFinished(() => void socket.destroy());
  const end = new Promise<string>((resolve) => {
    socket.on('error', (error) => resolve(error.message));
    socket.on('close', () => resolve('closed'));
  });
  expect(await end).toMatch(/certificate|closed|reset/);
});

/** A member that reads its files anew: `take` copies those of another authority's certificate there. */
async function renewable(name = SERVICE_NAME) {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-renewed-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const at = (file: string) => join(dir, file);
  const take = async (issuer: Authority, trusted: readonly Authority[] = [issuer], named = name) => {
    const { cert, key } = await issuer.issue(named);
    const cas = await Promise.all(trusted.map(({ ca }) => readFile(ca, 'utf8')));
    await Promise.all([writeFile(at('ca'), cas.join('')), copyFile(cert, at('cert')), copyFile(key, at('key'))]);
  };
  await take(ours);
  const files = { rpcCert: at('cert'), rpcKey: at('key'), rpcCa: at('ca'), rpcSecretFile: '' };
  return { take, at, security: await loadRpcSecurity(files) };
}

test('server and callers go over to another authority without a failed call, and then refuse the one before', async () => {
  const [server, caller] = [await renewable(), await renewable()];
  const address = await serve(server.security);
  let renewed = false;
  // One caller asks over one connection, the others over a new one each time.
  const client = connectDecode(address, caller.security);
  onTestFinished(() => client.close());
  const load = Array.from({ length: 4 }, async (_, i) => {
    let done = 0;
    for (; !renewed; done++) {
      const asking = i === 0 ? client : connectDecode(address, caller.security);
      expect((await asking.describe(AbortSignal.timeout(20_000))).model).toBe('m');
      if (asking !== client) asking.close();
    }
    return done;
  });
  // First all trust both, then all show the new certificate, then nobody trusts the old authority.
  const steps: [Authority, Authority[]][] = [
    [ours, [ours, others]],
    [others, [ours, others]],
    [others, [others]],
  ];
  for (const [issuer, trusted] of steps) {
    for (const { take, security } of [server, caller]) {
      await take(issuer, trusted);
      await security.renew!();
    }
  }
  renewed = true;
  expect((await Promise.all(load)).every((done) => done > 0)).toBe(true);
  await expect(ask(address, member)).rejects.toMatchObject({ code: 'worker_lost' });
  expect(await ask(address, await securityOf(others))).toBe('m');
});

test('certificates that are wrong are not taken, and those before stay in use', async () => {
  const { take, at, security } = await renewable();
  const address = await serve(security);
  await take(ours, [ours], 'mail');
  await expect(security.renew!()).rejects.toMatchObject({
    code: 'config_invalid',
    message: `--rpc-cert ${at('cert')}: it is not for the name llavacode`,
  });
  await take(ours);
  await copyFile((await ours.issue('other')).key, at('key'));
  await expect(security.renew!()).rejects.toMatchObject({ code: 'config_invalid' });
  expect(await ask(address, member)).toBe('m');
});

test('files that are missing or wrong are named at the start', async () => {
  const { cert, key } = await ours.issue('other');
  const foreign = await others.issue('other');
  const load = (rpcCert: string, rpcKey: string, rpcCa: string) =>
    loadRpcSecurity({ rpcCert, rpcKey, rpcCa, rpcSecretFile: '' });
  expect(await load('', '', '')).toBe(PLAINTEXT);
  const refused = (message: string) =>
    expect.objectContaining({ code: 'config_invalid', message: expect.stringContaining(message) });
  await expect(load(cert, '', '')).rejects.toEqual(refused('--rpc-key and --rpc-ca'));
  await expect(load(cert, key, '/no/such.pem')).rejects.toEqual(refused('--rpc-ca /no/such.pem'));
  await expect(load(cert, foreign.key, ours.ca)).rejects.toEqual(refused(foreign.key));
  await expect(load(cert, cert, ours.ca)).rejects.toEqual(refused(cert));
});

test('a service listens beyond its own machine only with mutual TLS', async () => {
  const { cert, key } = await ours.issue(SERVICE_NAME);
  const files = { rpcCert: cert, rpcKey: key, rpcCa: ours.ca, rpcSecretFile: '' };
  const none = { rpcCert: '', rpcKey: '', rpcCa: '', rpcSecretFile: '' };
  const [host, insecureListen] = ['0.0.0.0', false];
  expect(await loadServingSecurity({ ...files, host, insecureListen })).toMatchObject({ proof: 'certificates' });
  expect(await loadServingSecurity({ ...none, host, insecureListen: true })).toBe(PLAINTEXT);
  await expect(loadServingSecurity({ ...none, host, insecureListen })).rejects.toMatchObject({
    code: 'config_invalid',
  });
});
