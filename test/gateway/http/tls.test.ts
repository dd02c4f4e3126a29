/** The gateway's certificate and its keys are renewed while it serves, over real TLS. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { request } from 'node:https';
import { text } from 'node:stream/consumers';
import { connect, type TLSSocket } from 'node:tls';
import { expect, onTestFinished, test, vi } from 'vitest';
import { loadTls, renewTls } from '../../../services/gateway/http/tls.ts';
import { RenewedKeys } from '../../../services/gateway/tenants/api-keys.ts';
import { RenewedTls } from '../../../services/lib/process/certificate.ts';
import { bearer, keyEntry, keysOf } from '../../support/api-keys.ts';
import { type Authority, makeAuthority } from '../../support/certificates.ts';
import { fakeGateway, listeningGateway, spelling } from '../../support/fake-gateway.ts';

async function authority(): Promise<Authority> {
  const made = await makeAuthority();
  onTestFinished(() => made.remove());
  return made;
}

async function listen() {
  const ours = await authority();
  const files = async (of = ours) => {
    const { cert, key } = await of.issue('localhost');
    return { tlsCert: cert, tlsKey: key };
  };
  const tls = new RenewedTls((await loadTls(await files()))!);
  const gateway = await listeningGateway({ token: spelling('return x') }, { tls });
  return { ...gateway, tls, files, ca: await readFile(ours.ca) };
}

/** One completion over a connection of its own. */
async function complete(port: number, ca: Buffer): Promise<number> {
  const headers = { 'content-type': 'application/json' };
  const call = request({ host: 'localhost', port, ca, agent: false, method: 'POST', path: '/v1/completions', headers });
  call.end(JSON.stringify({ prompt: 'def f(x):\n', max_tokens: 4, stream: true }));
  const [answer] = await once(call, 'response');
  if (!(await text(answer)).includes('[DONE]')) throw new Error('the answer broke off');
  return answer.statusCode;
}

async function serialOf(port: number): Promise<string> {
  const socket: TLSSocket = connect({ port, host: 'localhost', rejectUnauthorized: false });
  await once(socket, 'secureConnect');
  const { serialNumber } = socket.getPeerCertificate();
  socket.destroy();
  return serialNumber;
}

test('no request fails while the certificate is renewed again and again, and each new connection gets the newest', async () => {
  const { port, ca, tls, files } = await listen();
  let renewed = false;
  const load = Array.from({ length: 8 }, async () => {
    let done = 0;
    while (!renewed) {
      expect(await complete(port, ca)).toBe(200);
      done++;
    }
    return done;
  });
  const serials = [await serialOf(port)];
  for (let round = 0; round < 5; round++) {
    expect(await renewTls(tls, await files())).toMatchObject({ serial: expect.any(String) });
    serials.push(await serialOf(port));
  }
  renewed = true;
  const counts = await Promise.all(load);
  expect(counts.every((count) => count > 0)).toBe(true);
  expect(new Set(serials).size).toBe(6);
});

test('a connection that is open goes on when the certificate is renewed', async () => {
  const { port, ca, tls, files } = await listen();
  const socket = connect({ port, host: 'localhost', ca });
  await once(socket, 'secureConnect');
  await renewTls(tls, await files());
  socket.write('GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n');
  expect(await text(socket)).toMatch(/^HTTP\/1\.1 200 /);
});

test('a certificate that is expired, does not fit its key or cannot be read is refused, and the one before is served', async () => {
  const { port, tls, files } = await listen();
  const before = await serialOf(port);
  const good = await files();
  const other = await files(await authority());
  const refused = (message: RegExp) =>
    expect.objectContaining({ code: 'config_invalid', message: expect.stringMatching(message) });
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 3 * 86_400_000 }); // it is valid for two days
  onTestFinished(() => void vi.useRealTimers());
  await expect(renewTls(tls, good)).rejects.toEqual(refused(/--tls-cert .*: it was valid until/));
  vi.setSystemTime(Date.now() - 5 * 86_400_000);
  await expect(renewTls(tls, good)).rejects.toEqual(refused(/--tls-cert .*: it is not valid before/));
  vi.useRealTimers();
  await expect(renewTls(tls, { ...good, tlsKey: other.tlsKey })).rejects.toEqual(refused(/--tls-key .*mismatch/));
  await expect(renewTls(tls, { ...good, tlsCert: '/no/such.pem' })).rejects.toEqual(
    refused(/--tls-cert \/no\/such.pem/),
  );
  expect(await serialOf(port)).toBe(before);
});

test('a request whose key is removed ends as it began, and the next one with that key is refused', async () => {
  const old = [keyEntry('old', 'acme'), keyEntry('kept', 'acme')];
  const keys = new RenewedKeys(await keysOf(old));
  let goOn = () => {};
  const held = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  const { app, workers } = await fakeGateway(
    { token: spelling('return x'), pauseAt: { stage: 'in decode', until: held } },
    { keys },
  );
  const ask = (key: string) =>
    app.inject({
      method: 'POST',
      url: '/v1/completions',
      headers: bearer(key),
      payload: { prompt: 'x', max_tokens: 3 },
    });
  const running = ask('old');
  await workers.held();
  keys.renew(await keysOf([keyEntry('kept', 'acme'), keyEntry('new', 'globex')]));
  expect((await ask('old')).json()).toMatchObject({ error: { code: 'invalid_api_key' } });
  goOn();
  expect((await running).statusCode).toBe(200);
  expect((await ask('kept')).statusCode).toBe(200);
  expect((await ask('new')).statusCode).toBe(200);
  expect(keys.tenants).toEqual(['acme', 'globex']);
});
