import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { RequestRecord } from '../../../services/gateway/completion/request-record.ts';
import { completionBody } from '../../../services/gateway/http/completion-body.ts';
import { fakeGateway } from '../../support/fake-gateway.ts';

test('of many long echoes each is built when the one before is out', async () => {
  const { journey } = await fakeGateway({ token: () => 70 });
  const request = completionBody.parse({ prompt: 'x', n: 8, max_tokens: 0, echo: true, logprobs: 1 });
  let [open, most, came] = [0, 0, 0];
  const emit = async () => {
    came++;
    most = Math.max(most, ++open);
    await nextTurn();
    open--;
  };
  const signal = new AbortController().signal;
  const deadlineMs = performance.now() + 60_000;
  await journey.complete(request, { id: 'r', tenant: 't', record: new RequestRecord(), signal, deadlineMs, emit });
  expect([came, most]).toEqual([8, 1]);
});
