import { expect, test } from 'vitest';
import { RequestRecord } from '../../../services/gateway/completion/request-record.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { keepingLog } from '../../support/fake-gateway.ts';

test('inference time lasts from the moment the prompt leaves the queue to the last token', async () => {
  metrics.inference.reset();
  const record = new RequestRecord();
  record.timeline.mark('received', 1000);
  record.timeline.mark('dispatched', 1500);
  record.measuring(false).onAccepted({ kv: null, queueUs: 250_000 });
  const delta = { prompt: 0, choice: 0, text: 'x', promptTokenIds: undefined, logprobs: null, tokenIds: [1] };
  record.delivered({ ...delta, finishReason: null }, 2000);
  record.delivered({ ...delta, finishReason: 'stop' }, 4500);
  record.end(keepingLog([]), 200);
  const sum = (await metrics.inference.get()).values.find(({ metricName }) => metricName?.endsWith('_sum'));
  expect(sum?.value).toBeCloseTo(2.75);
});
