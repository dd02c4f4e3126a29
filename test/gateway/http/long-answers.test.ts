/** Answers that are large: bounded before any work, and sent in pieces to clients that may not read. */
import { once } from 'node:events';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, onTestFinished, test, vi } from 'vitest';
import type { Echo } from '../../../services/gateway/completion/choice.ts';
import { RequestRecord } from '../../../services/gateway/completion/request-record.ts';
import { completionBody } from '../../../services/gateway/http/completion-body.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { until } from '../../support/fake-engine.ts';
import { type Answer, type FakeGatewayOptions, fakeGateway } from '../../support/fake-gateway.ts';
import type { FakeModel, Trouble } from '../../support/fake-workers.ts';

const PROMPT = Array.from({ length: 4_000 }, (_, i) => 300 + (i % 3_000));
const MODEL: FakeModel = { token: () => 70, capacity: 5_000, slots: 128 };

async function listen(model: Partial<FakeModel> = {}, options: FakeGatewayOptions = {}) {
  const gateway = await fakeGateway({ ...MODEL, ...model }, options);
  await gateway.app.listen({ host: '127.0.0.1', port: 0 });
  onTestFinished(() => {
    gateway.app.server.closeAllConnections();
    return gateway.app.close();
  });
  return { ...gateway, port: (gateway.app.server.address() as AddressInfo).port };
}

/** An answer of which nothing has been read yet. */
async function post(port: number, body: object): Promise<IncomingMessage> {
  const call = httpRequest({
    port,
    method: 'POST',
    path: '/v1/completions',
    headers: { 'content-type': 'application/json' },
  });
  call.on('error', () => {});
  call.end(JSON.stringify(body));
  const [response] = (await once(call, 'response')) as [IncomingMessage];
  onTestFinished(() => void response.destroy());
  return response.on('error', () => {});
}

const read = async (response: IncomingMessage): Promise<string> =>
  (await response.setEncoding('utf8').toArray()).join('');

test.each([
  [{ echo: true, logprobs: 5, n: 128, max_tokens: 0 }, 'logprobs'],
  [{ echo: true, logprobs: 5, n: 128, max_tokens: 0, stream: true }, 'logprobs'],
  [{ echo: true, logprobs: 5, n: 1, best_of: 128, max_tokens: 1 }, 'logprobs'],
  [{ logprobs: 5, n: 128, max_tokens: 900 }, 'logprobs'],
])('an answer of more than 16 MiB is refused before any work: %j', async (fields, param) => {
  const { complete, workers } = await fakeGateway(MODEL);
  const answer = await complete({ prompt: PROMPT, ...fields });
  expect(answer).toMatchObject({ status: 400, error: { code: 'invalid_request', param } });
  expect(answer.error!.message).toMatch(
    /the answer could have \d+\.\d MiB, more than 16: .*n, best_of.*logprobs.*echo/,
  );
  expect(workers.prefills).toEqual([]);
});

test('the ids and the texts of long prompts count as well', async () => {
  const { complete } = await fakeGateway({ ...MODEL, capacity: 40_000 }, { bodyLimitBytes: 1_000_000 });
  const prompt = Array(30_000).fill(70);
  for (const [fields, status] of [
    [{ return_token_ids: true }, 400],
    [{ echo: true, n: 128, max_tokens: 4_000 }, 400],
  ] as const) {
    expect((await complete({ prompt, n: 128, max_tokens: 1, ...fields })).status).toBe(status);
  }
});

test('a long answer comes in pieces, and is what the choices are one by one', async () => {
  const { port, complete } = await listen();
  const fields = { prompt: PROMPT, echo: true, logprobs: 5, max_tokens: 3, return_token_ids: true };
  const response = await post(port, { ...fields, n: 16 });
  expect(response.headers).toMatchObject({
    'transfer-encoding': 'chunked',
    'content-type': 'application/json; charset=utf-8',
  });
  const { choices, usage } = JSON.parse(await read(response)) as Answer;
  const [one] = (await complete({ ...fields, n: 1 })).choices;
  expect(one!.logprobs!.tokens).toHaveLength(4_003);
  expect(choices).toHaveLength(16);
  for (const [index, choice] of choices.entries()) expect(choice).toEqual({ ...one, index });
  expect(usage!.completion_tokens).toBe(48);
});

test('events as long as prompts are whole, whichever choices send them at once', async () => {
  const { port } = await listen({}, { bodyLimitBytes: 1_000_000 });
  const prompt = Array(8).fill(PROMPT);
  const response = await post(port, { prompt, echo: true, logprobs: 5, max_tokens: 3, stream: true });
  const events = (await read(response)).split('\n\n').filter((event) => event.startsWith('data: {'));
  const answers = events.map((event) => JSON.parse(event.slice('data: '.length)) as Answer);
  const names = Array.from({ length: 8 }, (_, i) =>
    answers
      .flatMap(({ choices }) => choices.filter(({ index }) => index === i))
      .flatMap(({ logprobs }) => logprobs!.tokens),
  );
  for (const tokens of names) expect(tokens).toHaveLength(4_003);
});

test('a prompt is made into its echo once, for all of its choices', async () => {
  const { journey } = await fakeGateway(MODEL);
  const request = completionBody.parse({ prompt: PROMPT, n: 8, max_tokens: 1, echo: true, logprobs: 1 });
  const echoes: (Echo | undefined)[] = [];
  const emit = ({ echo }: { echo?: Echo | undefined }) => void echoes.push(echo);
  const signal = new AbortController().signal;
  const deadlineMs = performance.now() + 60_000;
  await journey.complete(request, { id: 'r', tenant: 't', record: new RequestRecord(), signal, deadlineMs, emit });
  expect(echoes).toHaveLength(8);
  expect(new Set(echoes).size).toBe(1);
  const [[first], [again]] = [[...echoes[0]!.reports()], [...echoes[0]!.reports()]];
  expect(again).toBe(first);
});

test('a long answer that nobody reads takes few buffers, counts as in flight, and ends with the time of its request', async () => {
  const { port, inflight, lines } = await listen();
  const fields = { prompt: PROMPT, echo: true, logprobs: 5, max_tokens: 0, n: 18 };
  const response = await post(port, { ...fields, timeout_ms: 3_000 });
  expect(response.statusCode).toBe(200);
  await inflight.drain(60_000);
  await vi.waitUntil(() => lines.some(({ message }) => message === 'completion'), 10_000);
  expect(lines.find(({ message }) => message === 'completion')).toMatchObject({ code: 'deadline_exceeded' });
  await expect(read(response)).rejects.toThrow('aborted'); // it breaks off
});

test('128 choices of a client that does not read for a while make no warning', async () => {
  const warnings: string[] = [];
  const warn = ({ name, message }: Error) => void warnings.push(`${name}: ${message}`);
  process.on('warning', warn);
  onTestFinished(() => void process.off('warning', warn));
  const { port, workers } = await listen({ stepSize: 8 }, { maxInflight: 200 });
  const fields = { prompt: 'x', n: 128, max_tokens: 200, logprobs: 5, ignore_eos: true };
  const response = await post(port, { ...fields, stream: true });
  await vi.waitUntil(() => workers.decodes.length === 128, 30_000);
  expect(await read(response)).toContain('data: [DONE]');
  await read(await post(port, { ...fields, max_tokens: 3 }));
  expect(warnings).toEqual([]);
});

test('a client that reads nothing and leaves is charged for what was decoded, whatever it was sent', async () => {
  vi.useFakeTimers({ toFake: ['performance'] }); // no tokens come back with time
  onTestFinished(() => void vi.useRealTimers());
  const limits = { tokensPerMinute: 10_000 };
  const identity = { tenant: 'a', limits, access: 'complete' as const, mayUse: () => true };
  const keys = { tenants: ['a'], identify: () => identity };
  const { port, workers, lines, complete, inflight } = await listen({}, { keys, maxInflight: 100 });
  const fields = { prompt: PROMPT, echo: true, logprobs: 5, n: 16, max_tokens: 100, stream: true };
  const response = await post(port, fields);
  await until(() => workers.decodes.length === 16);
  await workers.idle(); // all is decoded, and the echoes of the first choices fill the connection
  response.destroy();
  const line = () => lines.find(({ message }) => message === 'completion');
  await until(() => line() !== undefined);
  await inflight.drain(60_000); // what it took is settled
  const { prompt_tokens, completion_tokens } = line()!.usage as Record<string, number>;
  expect(completion_tokens).toBeLessThan(1_000);
  const { error } = await complete({ prompt: [70], max_tokens: 4_990 });
  expect(error!.message).toContain(`has ${10_000 - prompt_tokens! - 1_600} of its 10000 tokens`);
});

test('tokens that are made again after the loss of a worker are charged once', async () => {
  let lost = false;
  const trouble = ({ stage, position }: Trouble) => {
    if (stage !== 'in decode' || position !== 5 || lost) return undefined;
    lost = true;
    throw new ServingError('worker_lost', 'gone');
  };
  const { journey } = await fakeGateway({ ...MODEL, trouble }, { maxReplays: 1, moreDecode: ['127.0.0.1:3'] });
  const request = completionBody.parse({ prompt: [70, 71], max_tokens: 9 });
  const record = new RequestRecord();
  const signal = new AbortController().signal;
  const deadlineMs = performance.now() + 60_000;
  await journey.complete(request, { id: 'r', tenant: 't', record, signal, deadlineMs, emit: () => {} });
  expect([lost, record.usage.completionTokens]).toEqual([true, 9]);
  expect(record.computedTokens).toBe(record.usage.promptTokens + 9);
});
