import { expect, test } from 'vitest';
import { RequestRecord } from '../../../services/gateway/completion/request-record.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { NO_SOFT_TOKENS } from '../../../services/lib/request/token-prompt.ts';
import { keepingLog } from '../../support/keeping-log.ts';

const sumOf = async (metric: { get(): Promise<{ values: { metricName?: string; value: number }[] }> }) =>
  (await metric.get()).values.find(({ metricName }) => metricName?.endsWith('_sum'))?.value;

test('queue time ends and inference time begins when the prompt leaves the queue of the prefill worker', async () => {
  metrics.inference.reset();
  metrics.queueTime.reset();
  const record = new RequestRecord();
  record.timeline.mark('received', 1000);
  record.timeline.mark('tokenized', 1100);
  record.timeline.mark('dispatched', 1500);
  record.observerFor(false).onAccepted({ kv: null, queueUs: 250_000 });
  const delta = { prompt: 0, choice: 0, text: 'x', promptTokenIds: undefined, reports: undefined, tokenIds: [1] };
  record.delivered({ ...delta, finishReason: null }, 2000);
  record.delivered({ ...delta, finishReason: 'stop' }, 4500);
  record.end(keepingLog([]), 200);
  expect(await sumOf(metrics.inference)).toBeCloseTo(2.75);
  expect(await sumOf(metrics.queueTime)).toBeCloseTo(0.65);
});

test('the log line of a request says whose it was and which workers it used, and gives its session as a digest', () => {
  const lines: Record<string, unknown>[] = [];
  const line = (session: string) => {
    const record = new RequestRecord();
    record.askedBy('acme', session);
    record.asksAbout('shop');
    record.placed('prefill:1', ['decode:1', 'decode:1']);
    record.replayed('worker_lost');
    record.placed('prefill:2', ['decode:1']);
    record.end(keepingLog(lines), 200);
    return lines.at(-1)!;
  };
  const first = line("ada's laptop");
  expect(first).toMatchObject({
    level: 'info',
    message: 'completion',
    tenant: 'acme',
    repo: 'shop',
    prefill: ['prefill:1', 'prefill:2'],
    decode: ['decode:1'],
    replays: 1,
    session: expect.stringMatching(/^[0-9a-f]{16}$/),
  });
  expect(line("ada's laptop").session).toBe(first.session);
  expect(line("bob's laptop").session).not.toBe(first.session);
});

test.each(['invalid_api_key', 'api_key_expired'] as const)(
  'a request that is refused with %s is logged at debug: the warning about its key stands for it',
  (code) => {
    const lines: Record<string, unknown>[] = [];
    const record = new RequestRecord();
    record.failed(new ServingError(code, 'the key is not good'));
    record.end(keepingLog(lines), 401);
    expect(lines).toMatchObject([{ level: 'debug', message: 'completion', code }]);
  },
);

test('a chat counts as the operation chat', async () => {
  const record = new RequestRecord({
    id: 'req-1',
    headers: {},
    method: 'POST',
    route: '/v1/chat/completions',
    operation: 'chat',
  });
  record.asksFor('tiny');
  record.timeline.mark('received', 1000);
  record.end(keepingLog([]), 200);
  const { values } = await metrics.genAiDuration.get();
  const operations = values.map(({ labels }) => labels['gen_ai_operation_name']);
  expect(operations).toContain('chat');
});

test('a request counts for its tenant by how it ended, and under the names of OpenTelemetry', async () => {
  const delta = { prompt: 0, choice: 0, text: 'x', promptTokenIds: undefined, reports: undefined, tokenIds: [1] };
  const served = new RequestRecord();
  served.ofTenant('umbrella');
  served.asksFor('tiny');
  served.timeline.mark('received', 1000);
  served.prompted({ ids: Int32Array.of(1, 2, 3), soft: NO_SOFT_TOKENS });
  served.delivered({ ...delta, finishReason: null }, 1200);
  served.delivered({ ...delta, finishReason: 'stop' }, 1300);
  served.end(keepingLog([]), 200);
  const refused = new RequestRecord();
  refused.ofTenant('umbrella');
  refused.timeline.mark('received', 1000);
  refused.failed(new ServingError('saturated', 'full'));
  refused.end(keepingLog([]), 429);
  const valuesOf = async (metric: { get(): Promise<{ values: { labels: object; value: number }[] }> }) =>
    (await metric.get()).values.map(({ labels, value }) => ({ ...labels, value }));
  expect(await valuesOf(metrics.tenantRequests)).toEqual(
    expect.arrayContaining([
      { tenant: 'umbrella', outcome: 'ok', value: 1 },
      { tenant: 'umbrella', outcome: 'saturated', value: 1 },
    ]),
  );
  // Alerts go by the same requests, counted by the bundle that served them.
  expect(await valuesOf(metrics.armRequests)).toEqual(
    expect.arrayContaining([
      { arm: 'stable', outcome: 'ok', value: expect.any(Number) },
      { arm: 'stable', outcome: 'saturated', value: 1 },
    ]),
  );
  expect(await valuesOf(metrics.tenantPromptTokens)).toContainEqual({ tenant: 'umbrella', value: 3 });
  expect(await valuesOf(metrics.tenantGenerationTokens)).toContainEqual({ tenant: 'umbrella', value: 2 });
  const model = { gen_ai_operation_name: 'text_completion', gen_ai_provider_name: 'llavacode' };
  expect(await valuesOf(metrics.genAiTtft)).toContainEqual({
    ...{ ...model, gen_ai_request_model: 'tiny', le: 0.25 },
    value: 1,
  });
  expect(await valuesOf(metrics.genAiDuration)).toContainEqual(
    expect.objectContaining({ ...model, gen_ai_request_model: '', error_type: 'saturated', le: '+Inf', value: 1 }),
  );
});
