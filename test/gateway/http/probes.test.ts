import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { ApiKeys } from '../../../services/gateway/tenants/api-keys.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { collectProcessMetrics } from '../../../services/lib/process/metrics.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

const token = spelling('ab');
collectProcessMetrics('gateway');

test('a gateway that has completed something is alive, ready and measured', async () => {
  const { app, complete, readiness } = await fakeGateway({ token });
  await complete({ prompt: 'x' });
  await readiness.check();
  expect((await app.inject('/livez')).json()).toEqual({ status: 'live' });
  expect((await app.inject('/readyz')).json()).toEqual({ status: 'ready' });
  const health = await app.inject('/health');
  expect([health.statusCode, health.json()]).toEqual([200, { status: 'ok' }]);
  const { payload, headers } = await app.inject('/metrics');
  expect(headers['content-type']).toContain('text/plain');
  expect(payload).toMatch(/vllm:time_to_first_token_seconds_count\{[^}]*\} [1-9]/);
  expect(payload).toMatch(/vllm:inter_token_latency_seconds_count\{[^}]*\} [1-9]/);
  expect(payload).toMatch(/vllm:request_success_total\{[^}]*finished_reason="stop"[^}]*\} [1-9]/);
  expect(payload).toMatch(/llavacode:stage_seconds_count\{[^}]*stage="handoff"[^}]*\} [1-9]/);
  expect(payload).toMatch(/llavacode:requests_inflight\{[^}]*\} 0/);
});

test('a gateway whose workers serve another bundle is not ready, and says why', async () => {
  const { app } = await fakeGateway({ token: () => 70, fingerprint: 'other' });
  for (const url of ['/readyz', '/health']) {
    const answer = await app.inject(url);
    expect(answer.statusCode).toBe(503);
    expect(answer.json()).toMatchObject({ status: 'not ready', reason: expect.any(String) });
  }
});

test('probes need no key, and tell nothing of the workers to those who have none', async () => {
  const keys: ApiKeys = {
    tenants: ['a'],
    identify: () => {
      throw new ServingError('invalid_api_key', 'no key');
    },
  };
  const { app } = await fakeGateway({ token: () => 70, fingerprint: 'other' }, { keys });
  for (const url of ['/readyz', '/health']) {
    const answer = await app.inject(url);
    const { error, ...rest } = answer.json();
    expect([answer.statusCode, rest]).toEqual([503, { status: 'not ready' }]);
    if (url === '/health')
      expect(error.message).toBe('Loading model'); // llama.cpp's words
    else expect(error).toBeUndefined();
  }
  expect((await app.inject('/metrics')).statusCode).toBe(401);
});

test('/version names the version that package.json names, and the model', async () => {
  const { app } = await fakeGateway({ token });
  const { version } = JSON.parse(await readFile(join(PACKAGE_ROOT, 'package.json'), 'utf8'));
  expect((await app.inject('/version')).json()).toMatchObject({ version, model: 'tiny' });
  expect((await app.inject('/metrics')).payload).toContain(`llavacode:build_info{version="${version}"`);
});

test('/version needs a key where there are keys', async () => {
  const refuse = () => {
    throw new ServingError('invalid_api_key', 'the request has no API key');
  };
  const { app } = await fakeGateway({ token }, { keys: { tenants: [], identify: refuse } });
  expect((await app.inject('/version')).statusCode).toBe(401);
});
