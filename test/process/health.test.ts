import { describe, expect, it } from 'vitest';
import { serveHealth } from '../../services/lib/process/health.ts';
import type { Phase } from '../../services/lib/process/lifecycle.ts';
import { collectProcessMetrics, metrics } from '../../services/lib/process/metrics.ts';

const get = async (address: string, path: string) => {
  const response = await fetch(`http://${address}${path}`);
  return { status: response.status, type: response.headers.get('content-type'), body: await response.text() };
};

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
});
