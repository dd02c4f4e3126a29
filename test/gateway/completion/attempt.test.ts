import { expect, test, vi } from 'vitest';
import { RequestRecord } from '../../../services/gateway/completion/request-record.ts';
import { completionBody } from '../../../services/gateway/http/completion-body.ts';
import { Deferred } from '../../../services/lib/async/deferred.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';
import type { Stage } from '../../support/fake-workers.ts';

const STAGES: Stage[] = ['before accepted', 'before first', 'before joined', 'in decode'];
const token = spelling('return self.items');

test('a completion of one token needs no decoder', async () => {
  const { complete, workers } = await fakeGateway({ token: () => 70 });
  const { choices, usage } = await complete({ prompt: 'x', max_tokens: 1 });
  expect(choices[0]).toMatchObject({ text: tokenizer.decode([70]), finish_reason: 'length' });
  expect(usage!.completion_tokens).toBe(1);
  expect(workers.decodes).toEqual([]);
  expect(workers.prefills[0]!.readers).toBe(0);
  await workers.idle();
});

test('a completion whose first token ends it cancels its decoder', async () => {
  const { complete, workers } = await fakeGateway({ token: () => idOf('<|file_sep|>'), holdAt: 'before joined' });
  const { choices } = await complete({ prompt: 'x', suffix: 'y' });
  expect(choices[0]).toMatchObject({ text: '', finish_reason: 'stop' });
  await workers.idle();
});

test('a choice whose first token ends it leaves no KV staged while another choice goes on', async () => {
  const { complete, workers } = await fakeGateway({
    token: (position, choice) => (choice === 0 && position === 0 ? idOf('<|endoftext|>') : 70),
    trouble: ({ stage, call }) => (stage === 'before joined' && call === 0 ? 'hang' : undefined), // it waits for a slot
  });
  const { client } = workers.decode;
  const { decode } = client;
  client.decode = async function* (request, signal, deadline) {
    for await (const event of decode(request, signal, deadline)) {
      // The other choice goes on only when its own decode call is all that is open: prefill has ended.
      if (event.step) await vi.waitUntil(() => workers.open === 1, { timeout: 30_000 });
      yield event;
    }
  };
  const { choices } = await complete({ prompt: 'x', max_tokens: 12, n: 2 });
  expect(choices.map(({ finish_reason }) => finish_reason)).toEqual(['stop', 'length']);
  await workers.idle();
});

test.each(STAGES)('a worker that fails %s ends the request with its error, and every call', async (stage) => {
  const error = new ServingError('kv_truncated', 'the stream broke off');
  const gateway = await fakeGateway({ token, failAt: { stage, error } });
  const answer = await gateway.complete({ prompt: 'x', n: 2 });
  expect(answer).toMatchObject({ status: 500, error: { code: 'kv_truncated', type: 'server_error' } });
  await gateway.workers.idle();
});

test('a worker that fails while another one still computes ends the calls of both', async () => {
  const failAt = { stage: 'before joined', error: new ServingError('runtime_failed', 'NaN') } as const;
  const gateway = await fakeGateway({ token, holdAt: 'before first', failAt });
  expect(await gateway.complete({ prompt: ['x', 'y'], n: 2 })).toMatchObject({ status: 500 });
  await gateway.workers.idle();
});

test('a worker that goes away is left alone until it answers again', async () => {
  const error = new ServingError('worker_lost', 'connection refused');
  const { complete } = await fakeGateway({ token, failAt: { stage: 'before first', error } });
  expect(await complete({ prompt: 'x' })).toMatchObject({ status: 503, error: { code: 'worker_lost' } });
  const next = await complete({ prompt: 'x' });
  expect(next).toMatchObject({ status: 503, error: { code: 'no_worker' } });
  expect(next.error!.message).toContain('127.0.0.1:1 failed a request (connection refused)');
  expect(next.headers['retry-after']).toBe('1');
});

test('a prefill worker that fails after its prompt was computed and taken harms nobody', async () => {
  const gateway = await fakeGateway({ token });
  const { prefill } = gateway.workers;
  const { prefill: whole } = prefill.client;
  prefill.client.prefill = async function* (request, signal) {
    for await (const event of whole(request, signal)) {
      yield event;
      if (event.first) throw new ServingError('worker_lost', 'gone');
    }
  };
  expect(await gateway.complete({ prompt: 'x', max_tokens: 40 })).toMatchObject({ status: 200 });
  await gateway.workers.idle();
});

test('a worker that ends its call early does not end the text silently', async () => {
  const gateway = await fakeGateway({ token });
  gateway.workers.decode.client.decode = async function* () {};
  expect(await gateway.complete({ prompt: 'x' })).toMatchObject({ status: 503, error: { code: 'worker_lost' } });
  const other = await fakeGateway({ token });
  other.workers.prefill.client.prefill = async function* () {};
  expect(await other.complete({ prompt: 'x' })).toMatchObject({ status: 503, error: { code: 'worker_lost' } });
});

test('the deadline of a request travels to the workers', async () => {
  const gateway = await fakeGateway({ token });
  const deadlines: (number | undefined)[] = [];
  const { prefill, decode } = gateway.workers;
  const [whole, rest] = [prefill.client.prefill, decode.client.decode];
  prefill.client.prefill = (request, signal, deadline) => {
    deadlines.push(deadline);
    return whole(request, signal);
  };
  decode.client.decode = (request, signal, deadline) => {
    deadlines.push(deadline);
    return rest(request, signal);
  };
  const before = performance.now();
  await gateway.complete({ prompt: 'x', timeout_ms: 30_000 });
  for (const deadline of deadlines) expect(deadline).toBeGreaterThanOrEqual(before + 29_000);
  for (const deadline of deadlines) expect(deadline).toBeLessThanOrEqual(performance.now() + 30_000);
  expect(deadlines).toHaveLength(2);
});

test('a worker is read to the end while the client takes nothing, and never for more than max_tokens', async () => {
  const gateway = await fakeGateway({ token: () => 70 }, { stallTimeoutMs: 50 });
  const { client } = gateway.workers.decode;
  const { decode } = client;
  let [sent, ended] = [0, false];
  client.decode = async function* (request, signal, deadline) {
    try {
      // It neither stops at max_tokens nor says that it has come to the end.
      for await (const event of decode({ ...request, maxTokens: 10_000 }, signal, deadline)) {
        if (event.step) sent++;
        yield event;
      }
    } finally {
      ended = true;
    }
  };
  const taken: number[] = [];
  const read = new Deferred<void>();
  const request = completionBody.parse({ prompt: 'x', max_tokens: 40, ignore_eos: true });
  const completed = gateway.journey.complete(request, {
    ...{ id: 'r', tenant: 't', record: new RequestRecord(), signal: new AbortController().signal },
    deadlineMs: performance.now() + 60_000,
    emit: async ({ tokenIds }) => {
      await read.promise;
      taken.push(...tokenIds);
    },
  });
  await vi.waitUntil(() => ended, { timeout: 30_000 });
  await gateway.workers.idle();
  expect([sent, taken]).toEqual([39, []]); // the first token comes from prefill
  read.resolve();
  const [choices] = await completed;
  expect(taken).toHaveLength(40);
  expect(choices![0]!.finished).toBe(true);
});
