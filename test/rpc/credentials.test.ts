/** Mutual TLS between services, over real sockets. */
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
