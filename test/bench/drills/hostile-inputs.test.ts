import { buffer } from 'node:stream/consumers';
import { expect, test } from 'vitest';
import { hostileRequests } from '../../../bench/drills/hostile-inputs.ts';
import { sendRequest } from '../../../services/http-call.ts';
import { listeningGateway } from '../../support/fake-gateway.ts';

test('hostile names, parameters and headers are refused, and none is a fault of the gateway', async () => {
  const { port } = await listeningGateway({ token: () => 70 });
  const answers: Record<string, number | undefined> = {};
  for (const [name, { path, ...request }] of hostileRequests()) {
    const url = `http://127.0.0.1:${port}${path}`;
    const response = await sendRequest({ ...request, url, signal: AbortSignal.timeout(60_000) });
    await buffer(response);
    answers[name] = response.statusCode;
  }
  expect(Object.keys(answers).length).toBeGreaterThan(30);
  expect(Object.entries(answers).filter(([, status = 0]) => status < 200 || status >= 500)).toEqual([]);
  expect(answers['many headers']).toBe(431);
});
