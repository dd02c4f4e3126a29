import { readFile } from 'node:fs/promises';
import { get as httpsGet } from 'node:https';
import { text } from 'node:stream/consumers';
import { describe, expect, it, onTestFinished } from 'vitest';
import { noteCertificates, RenewedTls } from '../../services/lib/process/certificate.ts';
import { serveHealth } from '../../services/lib/process/health.ts';
import type { Phase } from '../../services/lib/process/lifecycle.ts';
import { collectProcessMetrics, metrics } from '../../services/lib/process/metrics.ts';

const get = async (address: string, path: string) => {
  const response = await fetch(`http://${address}${path}`);
  return { status: response.status, type: response.headers.get('content-type'), body: await response.text() };
};

import { makeAuthority } from '../support/certificates.ts';

collectProcessMetrics('prefill');

describe('serveHealth', () => {
  it('a service is alive in every phase and ready in one', async () => {
    const life: { phase: Phase } = { phase: 'starting' };
    const address = await serveHealth('127.0.0.1', 0, life);
    const seen: Record<string, number[]> = {};
    for (const phase of ['starting', 'ready', 'draining', 'stopped'] as const) {
      life.phase = phase;
      seen[phase] = [(await get(address, '/livez')).status, (await get(address, '/readyz')).status];
    }
    expect(seen).toEqual({ starting: [200, 503], ready: [200, 200], draining: [200, 503], stopped: [200, 503] });
    expect(await get(address, '/readyz')).toMatchObject({ body: 'stopped' });
    expect(await get(address, '/')).toMatchObject({ status: 404, body: expect.stringContaining('/metrics') });
  });

  it('a note stands under the phase, whatever it is', async () => {
    const life: { phase: Phase } = { phase: 'starting' };
    const address = await serveHealth('127.0.0.1', 0, life, { note: 'computes on CPU (auto: no GPU)' });
    expect(await get(address, '/readyz')).toMatchObject({
      status: 503,
      body: 'starting\ncomputes on CPU (auto: no GPU)',
    });
    life.phase = 'ready';
    expect(await get(address, '/readyz')).toMatchObject({ status: 200, body: 'ready\ncomputes on CPU (auto: no GPU)' });
  });

  it('a scrape is answered with gauges brought up to date', async () => {
    const address = await serveHealth(
      '127.0.0.1',
      0,
      { phase: 'ready' },
      { beforeScrape: () => metrics.stagedBytes.set(123) },
    );
    const { status, type, body } = await get(address, '/metrics?from=prometheus');
    expect(status).toBe(200);
    expect(type).toContain('version=0.0.4');
    expect(body).toContain('\nllavacode:kv_staged_bytes{service="prefill"} 123\n');
  });

  it('a scrape whose gauge cannot be read is answered with 500, and the service lives on', async () => {
    const address = await serveHealth(
      '127.0.0.1',
      0,
      { phase: 'ready' },
      {
        beforeScrape: () => {
          throw new Error('pool is gone');
        },
      },
    );
    expect(await get(address, '/metrics')).toMatchObject({ status: 500, body: 'pool is gone' });
    expect(await get(address, '/livez')).toMatchObject({ status: 200 });
  });

  it('an address in use is refused, and the error names it', async () => {
    const address = await serveHealth('127.0.0.1', 0, { phase: 'ready' });
    const port = Number(address.split(':')[1]);
    await expect(serveHealth('127.0.0.1', port, { phase: 'ready' })).rejects.toMatchObject({
      code: 'address_in_use',
      message: expect.stringContaining(String(port)),
    });
  });

  it('a service with certificates speaks HTTPS on the port that probes ask over HTTP', async () => {
    const authority = await makeAuthority();
    onTestFinished(() => authority.remove());
    const files = await authority.issue('llavacode');
    const [ca, cert, key] = await Promise.all([authority.ca, files.cert, files.key].map((path) => readFile(path)));
    const tls = new RenewedTls({ cert: cert!, key: key! });
    const address = await serveHealth('127.0.0.1', 0, { phase: 'ready' }, { tls });
    const scrape = (authorities: Buffer) =>
      new Promise<string>((resolve, reject) => {
        const options = { ca: authorities, servername: 'llavacode', agent: false } as const;
        const request = httpsGet(`https://${address}/metrics`, options, (response) =>
          text(response).then(resolve, reject),
        );
        request.on('error', reject);
      });
    expect(await scrape(ca!)).toContain('llavacode:kv_staged_bytes');
    expect(await get(address, '/readyz')).toMatchObject({ status: 200, body: 'ready' });
    await expect(
      new Promise((_, reject) => httpsGet(`https://${address}/metrics`, { agent: false }).on('error', reject)),
    ).rejects.toMatchObject({ code: expect.stringMatching(/SELF_SIGNED|UNABLE_TO/) });
    expect(await get(address, '/livez')).toMatchObject({ status: 200 });
    const other = await makeAuthority();
    onTestFinished(() => other.remove());
    const renewed = await other.issue('llavacode');
    tls.renew({ cert: await readFile(renewed.cert), key: await readFile(renewed.key) });
    expect(await scrape(await readFile(other.ca))).toContain('llavacode:kv_staged_bytes');
    await expect(scrape(ca!)).rejects.toMatchObject({ code: expect.stringMatching(/SELF_SIGNED|UNABLE_TO|SIGNATURE/) });
  });

  it('the end of a certificate is a metric, by the setting that names its file', async () => {
    const authority = await makeAuthority();
    onTestFinished(() => authority.remove());
    noteCertificates({ rpcCa: await readFile(authority.ca) });
    const address = await serveHealth('127.0.0.1', 0, { phase: 'ready' });
    const { body } = await get(address, '/metrics');
    const found = /llavacode:certificate_not_after_seconds\{setting="rpc-ca",service="prefill"\} (\S+)/.exec(body)?.[1];
    const days = (Number(found) - Date.now() / 1000) / 86_400;
    expect(days).toBeGreaterThan(1.5);
    expect(days).toBeLessThan(2.5);
  });
});
