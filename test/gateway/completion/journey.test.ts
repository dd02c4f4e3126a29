import { expect, test } from 'vitest';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

test.each([
  ['empty', ''],
  ['too long', 'x '.repeat(400)],
])('a list of prompts of which the last is %s is refused before anything is computed or sent', async (_, last) => {
  const { app, workers } = await fakeGateway({ token: spelling('ab') });
  const prompt = [...Array.from({ length: 20 }, (_, i) => `value_${i} = `), last];
  for (const stream of [true, false]) {
    const payload = { prompt, max_tokens: 8, stream };
    const answer = await app.inject({ method: 'POST', url: '/v1/completions', payload });
    expect(answer.statusCode).toBe(400);
    expect(answer.json().error.param).toBe('prompt');
  }
  expect(workers.prefills).toEqual([]);
});
