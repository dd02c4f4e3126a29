import { expect, test } from 'vitest';
import { RequestRecord } from '../../../services/gateway/completion/request-record.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
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

test('a request whose key is refused is logged at debug: the warning about its key stands for it', () => {
  const lines: Record<string, unknown>[] = [];
  const record = new RequestRecord();
  record.failed(new ServingError('invalid_api_key', 'the request has no API key'));
  record.end(keepingLog(lines), 401);
  expect(lines).toMatchObject([{ level: 'debug', message: 'completion', code: 'invalid_api_key' }]);
});
