import { createServer } from 'node:net';
import OpenAI, { APIError } from 'openai';
import { afterEach, describe, expect, test } from 'vitest';
import type { GatewayParts } from '../../services/gateway/compose.ts';
import { type Gateway, startGateway } from '../../services/gateway/service.ts';
import { GATEWAY_SETTINGS } from '../../services/gateway/settings.ts';
import { NO_KEYS } from '../../services/gateway/tenants/api-keys.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { metrics } from '../../services/lib/process/metrics.ts';
import { loadConfig } from '../../services/settings.ts';
import { spelling, tokenizer } from '../support/fake-gateway.ts';
import { type FakeModel, FINGERPRINT, fakeWorkers, type Trouble } from '../support/fake-workers.ts';
import { keepingLog } from '../support/keeping-log.ts';

const open: Gateway[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((gateway) => gateway.close()));
});

/** Starts a gateway on a free port, with fake workers behind it. */
async function start(model: FakeModel, flags: Record<string, unknown> = {}, more: Partial<GatewayParts> = {}) {
  const workers = fakeWorkers(model);
  const draining = new AbortController();
  const parts: GatewayParts = {
    modelName: 'tiny',
    fingerprint: FINGERPRINT,
    contextFingerprint: undefined,
    hidden: 2,
    tokenizer,
    eosIds: [],
    retrieval: undefined,
    store: undefined,
    indexer: undefined,
    keys: NO_KEYS,
    connectPrefill: () => workers.prefill.client,
    connectDecode: () => workers.decode.client,
    draining: draining.signal,
    log: keepingLog([]),
    ...more,
  };
  const wanted = { model: 'unused', port: 0, prefillWorkers: '127.0.0.1:1', decodeWorkers: '127.0.0.1:2', ...flags };
  const gateway = await startGateway(loadConfig(GATEWAY_SETTINGS, wanted, {}), parts);
  open.push(gateway);
  return { gateway, workers, draining, url: `http://${gateway.address}` };
}

describe('the official client', () => {
  test('the official client completes and streams', async () => {
    const { gateway, url } = await start({ token: spelling('return x') });
    await gateway.ready;
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
    const body = { model: 'tiny', prompt: 'def f(x):\n', suffix: '\n', max_tokens: 20 };
    const whole = await client.completions.create(body);
    expect(whole.choices[0]).toMatchObject({ text: 'return x', finish_reason: 'stop' });
    const stream = await client.completions.create({ ...body, stream: true, stream_options: { include_usage: true } });
    let text = '';
    let usage: unknown;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.text ?? '';
      usage = chunk.usage ?? usage;
    }
    expect(text).toBe('return x');
    expect(usage).toEqual(whole.usage);
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual(['tiny']);
  });

  test('the official client understands refusals', async () => {
    const { url } = await start({ token: spelling('x') });
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
    const refused = client.completions.create({ model: 'gpt', prompt: 'x' });
    await expect(refused).rejects.toThrow(APIError);
    await expect(refused).rejects.toMatchObject({ status: 404, code: 'model_not_found', param: 'model' });
  });

  test('an official client that gives up frees every call', async () => {
    const { gateway, workers, url } = await start({ token: spelling('a b c d e f') });
    await gateway.ready;
    workers.model.holdAt = 'in decode';
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
    const stream = await client.completions.create({ model: 'tiny', prompt: 'x', stream: true });
    for await (const chunk of stream) {
      expect(chunk.choices[0]!.text).not.toBe('');
      break;
    }
    await workers.idle();
  });
});

test('waiting prompts are served by the weight of their tenant, and within a tenant by priority', async () => {
  const keys: GatewayParts['keys'] = {
    tenants: ['a', 'b'],
    identify: (tenant = '') => ({ tenant, limits: {}, access: 'admin' as const, mayUse: () => true }),
  };
  let holding = false;
  const trouble = ({ stage, call }: Trouble) => (holding && stage === 'before first' && call < 3 ? 'hang' : undefined);
  const { gateway, workers, url } = await start(
    { token: spelling('ab'), trouble },
    { tenantWeights: 'a=1,b=3' },
    { keys },
  );
  await gateway.ready;
  holding = true;
  const ask = (tenant: string, priority: number, prompt: number[]) =>
    fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        authorization: `Bearer ${tenant}`,
        'x-request-timeout-ms': '5000',
      },
      body: JSON.stringify({ prompt, priority, max_tokens: 4 }),
    });
  // Two prompts compute (the readiness trial came before them), and their clients hang up when the others wait.
  const given = new AbortController();
  const firsts = [0, 1].map(() =>
    fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: 'Bearer c' },
      body: JSON.stringify({ prompt: [1], max_tokens: 4 }),
      signal: given.signal,
    }).catch(() => {}),
  );
  await expect.poll(() => workers.prefills.length).toBe(3);
  const waiting: Promise<Response>[] = [];
  const name = { a: 100, b: 200 } as const;
  for (const [tenant, priority] of [
    ...(['a', 'a', 'a'] as const).map((each, i) => [each, 5 - i] as const),
    ...(['b', 'b', 'b'] as const).map((each, i) => [each, 5 - i] as const),
  ]) {
    waiting.push(ask(tenant, priority, [name[tenant] + priority, 1, 1, 1]));
    await expect.poll(async () => (await metrics.waiting.get()).values[0]?.value).toBe(waiting.length);
  }
  given.abort();
  await Promise.all([...firsts, ...waiting]);
  // The first of a, then three of b for each of a; within a tenant the lowest priority value first.
  expect(workers.prefills.slice(3).map(({ tokenIds }) => tokenIds![0])).toEqual([103, 203, 204, 205, 104, 105]);
});

test('the first client is served, though no worker has answered when it connects', async () => {
  const { url } = await start({ token: spelling('ab'), describeMs: 50 });
  const answer = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ prompt: 'x', max_tokens: 4 }),
  });
  expect([answer.status, await answer.json()]).toMatchObject([200, { choices: [{ text: 'ab' }] }]);
});

describe('a gateway that stops', () => {
  const post = (url: string) =>
    fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ prompt: 'x', max_tokens: 5 }),
    });

  test('a gateway that stops lets running requests finish and takes no new ones', async () => {
    const { gateway, workers, draining, url } = await start({ token: () => 70 });
    await gateway.ready;
    let proceed!: () => void;
    const gate = new Promise<void>((resolve) => {
      proceed = resolve;
    });
    const { decode } = workers.decode.client;
    workers.decode.client.decode = async function* (request, signal) {
      await gate;
      yield* decode(request, signal);
    };
    const running = post(url);
    await expect.poll(() => workers.prefills.length).toBe(2);
    draining.abort(new ServingError('draining', 'shutting down'));
    const closing = gateway.close();
    expect((await post(url)).status).toBe(503);
    expect((await fetch(`${url}/readyz`)).status).toBe(503);
    proceed();
    expect((await running).status).toBe(200);
    await closing;
  });

  test('a gateway that stops does not wait for its own trial', async () => {
    const { gateway, workers, draining } = await start({ token: () => 70, holdAt: 'before first' });
    await workers.held();
    draining.abort(new ServingError('draining', 'shutting down'));
    await gateway.close();
    await workers.idle();
  });

  test('a gateway that stops cuts off requests that do not finish in time', async () => {
    const { gateway, workers, draining, url } = await start({ token: () => 70 }, { drainTimeoutMs: 10 });
    await gateway.ready;
    workers.model.holdAt = 'in decode';
    const running = post(url);
    await workers.held();
    draining.abort(new ServingError('draining', 'shutting down'));
    await gateway.close();
    const answer = await running;
    expect([answer.status, await answer.json()]).toMatchObject([503, { error: { code: 'draining' } }]);
    await workers.idle();
  });
});

test('a port in use is reported as address_in_use', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  const { port } = await new Promise<{ port: number }>((resolve) =>
    other.once('listening', () => resolve(other.address() as { port: number })),
  );
  await expect(start({ token: () => 70 }, { port })).rejects.toMatchObject({ code: 'address_in_use' });
  other.close();
});
