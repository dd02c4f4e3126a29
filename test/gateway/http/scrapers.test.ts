/** Who reads /metrics: a token made for it, listed networks, and without both of them a key with access `admin`. */
import { createHash } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { isNetwork } from '../../../services/gateway/http/networks.ts';
import { loadScrapers } from '../../../services/gateway/http/scrapers.ts';
import { loadApiKeys, NO_KEYS } from '../../../services/gateway/tenants/api-keys.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';
import { temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();
const TOKEN = 'f'.repeat(32);
const fileOf = async (name: string, text: string) => {
  const path = join(dir, name);
  await writeFile(path, text);
  return path;
};
const key_sha256 = createHash('sha256').update('of-acme').digest('hex');
const keys = await loadApiKeys(
  await fileOf('keys.json', JSON.stringify([{ key_sha256, tenant: 'acme', repos: ['*'], access: 'admin' }])),
);
const metricsTokenFile = await fileOf('token', `${TOKEN}\n`);

async function statusOf(scrapers: Parameters<typeof loadScrapers>[0], bearer: string | undefined, from = '127.0.0.1') {
  const { app } = await fakeGateway({ token: spelling('a') }, { keys, scrapers: await loadScrapers(scrapers) });
  const headers = bearer === undefined ? {} : { authorization: `Bearer ${bearer}` };
  return (await app.inject({ url: '/metrics', headers, remoteAddress: from })).statusCode;
}

describe('/metrics', () => {
  test.each([
    ['the token', TOKEN, 200],
    ["a tenant's key, whatever it may do", 'of-acme', 401],
    ['another token', 'e'.repeat(32), 401],
    ['nothing', undefined, 401],
  ])('is read, where there is a token, with %s: %s → %i', async (_, bearer, status) => {
    expect(await statusOf({ metricsTokenFile, metricsNetworks: [] }, bearer)).toBe(status);
  });

  test.each([
    ['10.1.2.3', 200],
    ['::ffff:10.1.2.3', 200],
    ['192.168.7.7', 200],
    ['192.168.7.8', 401],
    ['fd00::5', 200],
    ['fe80::1', 401],
  ])('is read, where networks are listed, from %s → %i, whatever key is sent', async (from, status) => {
    const networks = { metricsTokenFile: '', metricsNetworks: ['10.0.0.0/8', '192.168.7.7', 'fd00::/8'] };
    expect(await statusOf(networks, 'of-acme', from)).toBe(status);
  });

  test('is read with the token from anywhere, where both are given', async () => {
    expect(await statusOf({ metricsTokenFile, metricsNetworks: ['10.0.0.0/8'] }, TOKEN, '192.0.2.1')).toBe(200);
  });

  test('needs a key with access admin, where neither is given', async () => {
    expect(await statusOf({ metricsTokenFile: '', metricsNetworks: [] }, 'of-acme')).toBe(200);
    expect(await statusOf({ metricsTokenFile: '', metricsNetworks: [] }, undefined)).toBe(401);
  });

  test('needs its token also in a gateway without keys', async () => {
    const scrapers = await loadScrapers({ metricsTokenFile, metricsNetworks: [] });
    const { app } = await fakeGateway({ token: spelling('a') }, { keys: NO_KEYS, scrapers });
    expect((await app.inject('/metrics')).statusCode).toBe(401);
    const headers = { authorization: `Bearer ${TOKEN}` };
    expect((await app.inject({ url: '/metrics', headers })).statusCode).toBe(200);
  });

  test('gives its token access to nothing else', async () => {
    const scrapers = await loadScrapers({ metricsTokenFile, metricsNetworks: ['127.0.0.1'] });
    const { app } = await fakeGateway({ token: spelling('a') }, { keys, scrapers });
    const headers = { authorization: `Bearer ${TOKEN}` };
    expect((await app.inject({ url: '/v1/models', headers })).statusCode).toBe(401);
  });
});

test.each([
  ['short', 'must hold one token of at least 16 characters'],
  ['', 'must hold one token'],
  [`${TOKEN} ${TOKEN}`, 'must hold one token'],
])('a file with %o is refused at the start', async (text, message) => {
  const file = await fileOf('wrong', text);
  await expect(loadScrapers({ metricsTokenFile: file, metricsNetworks: [] })).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining(message),
  });
});

test.each([
  ['10.0.0.0/8', true],
  ['10.0.0.1', true],
  ['fd00::/8', true],
  ['10.0.0.0/33', false],
  ['fd00::/129', false],
  ['10.0.0.0/8/8', false],
  ['10.0.0.0/x', false],
  ['example.com', false],
  ['', false],
])('%o is a network: %s', (text, expected) => {
  expect(isNetwork(text)).toBe(expected);
});
