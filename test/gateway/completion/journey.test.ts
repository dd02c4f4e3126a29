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

test('t_max_prompt_ms ends a request whose prompts have no first token, and no other', async () => {
  const body = { prompt: 'x', max_tokens: 8, t_max_prompt_ms: 200 };
  const late = await fakeGateway({ token: spelling('ab'), holdAt: 'before first' });
  const { status, error } = await late.complete(body);
  expect([status, error!.code]).toEqual([504, 'deadline_exceeded']);
  expect(error!.message).toContain('t_max_prompt_ms');
  await late.workers.idle();
  const slow = await fakeGateway({ token: spelling('ab cd'), holdAt: 'in decode' });
  const answer = slow.complete({ ...body, t_max_prompt_ms: 60_000, timeout_ms: 300 });
  expect((await answer).error!.message).not.toContain('t_max_prompt_ms');
  const whole = await fakeGateway({ token: spelling('ab') });
  expect((await whole.complete({ ...body, prompt: ['x', 'y'], t_max_prompt_ms: 60_000 })).status).toBe(200);
});
