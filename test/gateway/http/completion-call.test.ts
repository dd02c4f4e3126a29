import { expect, test } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { type FakeGateway, fakeGateway, OTHER_DECODE, spelling } from '../../support/fake-gateway.ts';
import { fakeWorkers, type Stage } from '../../support/fake-workers.ts';
import { post } from '../../support/post.ts';

const STAGES: Stage[] = ['before accepted', 'before first', 'before joined', 'in decode'];
const token = spelling('return self.items');

/** The line about a completion, once it is written. */
async function completionLine({ lines, app }: FakeGateway) {
  const line = () => lines.find(({ message }) => message === 'completion');
  await expect.poll(line).toBeDefined();
  await app.close();
  return line();
}

test.each(STAGES.flatMap((stage) => [true, false].map((stream) => [stage, stream] as const)))(
  'a client that hangs up %s (stream: %s) frees every call',
  async (stage, stream) => {
    const gateway = await fakeGateway({ token, holdAt: stage });
    const request = await post(gateway, { prompt: 'x', n: 2, stream });
    await gateway.workers.held();
    expect(gateway.workers.open).toBeGreaterThan(0);
    request.destroy();
    await gateway.workers.idle();
    expect(await completionLine(gateway)).toMatchObject({ status: 499, code: 'client_gone' });
  },
);

test('a client that hangs up during retrieval starts no work at all', async () => {
  let searching!: () => void;
  const search = new Promise<void>((resolve) => {
    searching = resolve;
  });
  let aborted: unknown;
  const gateway = await fakeGateway(
    { token },
    {
      retrieval: {
        retrieve: (_, signal) => {
          searching();
          return new Promise((_, reject) =>
            signal.addEventListener('abort', () => {
              aborted = signal.reason;
              reject(signal.reason);
            }),
          );
        },
      },
    },
  );
  const request = await post(gateway, { prompt: 'x', rag: { repo: 'r' } });
  await search;
  request.destroy();
  expect(await completionLine(gateway)).toMatchObject({ code: 'client_gone' });
  expect(aborted).toMatchObject({ code: 'client_gone' });
  expect(gateway.workers.prefills).toEqual([]);
});

test('a completion that names another model than the served one is refused', async () => {
  const { complete } = await fakeGateway({ token });
  expect(await complete({ model: 'gpt', prompt: 'x' })).toMatchObject({ status: 404, error: { param: 'model' } });
  expect(await complete({ model: 'tiny', prompt: 'x' })).toMatchObject({ status: 200 });
});

test('more requests than may be in flight get 429, and the place is free again afterwards', async () => {
  const gateway = await fakeGateway({ token, holdAt: 'before first' }, { maxInflight: 1 });
  const request = await post(gateway, { prompt: 'x' });
  await gateway.workers.held();
  const refused = await gateway.complete({ prompt: 'y' });
  expect(refused).toMatchObject({ status: 429, error: { code: 'saturated' } });
  expect(refused.error!.message).toContain('--max-inflight');
  expect(refused.headers['retry-after']).toBe('1');
  request.destroy();
  await gateway.workers.idle();
  delete gateway.workers.model.holdAt;
  await expect.poll(async () => (await gateway.complete({ prompt: 'y' })).status).toBe(200);
  await gateway.app.close();
});

test('a request is aborted at its deadline', async () => {
  const { complete, workers } = await fakeGateway({ token, holdAt: 'in decode' }, { requestTimeoutMs: 5 });
  const answer = await complete({ prompt: 'x' });
  expect(answer).toMatchObject({ status: 504, error: { code: 'deadline_exceeded' } });
  await workers.idle();
});

test('a draining gateway takes no new request', async () => {
  const { complete, draining } = await fakeGateway({ token });
  draining.abort(new ServingError('draining', 'shutting down'));
  const answer = await complete({ prompt: 'x' });
  expect(answer).toMatchObject({ status: 503, error: { code: 'draining' } });
  // The next try must go elsewhere: this connection leads to a process that stops.
  expect(answer.headers).toMatchObject({ 'retry-after': '1', connection: 'close' });
});

test('a budget in a header counts where the body names none, and the budget of the gateway is the largest', async () => {
  const gateway = await fakeGateway({ token, holdAt: 'in decode' }, { requestTimeoutMs: 20 });
  const ask = async (header: string, body: object = {}) => {
    const response = await gateway.app.inject({
      method: 'POST',
      url: '/v1/completions',
      payload: { prompt: 'x', ...body },
      headers: { 'x-request-timeout-ms': header },
    });
    return response.json().error.message as string;
  };
  expect(await ask('10')).toContain('10 ms');
  expect(await ask('10', { timeout_ms: 15 })).toContain('15 ms');
  expect(await ask('5000')).toContain('20 ms');
  expect(await ask('soon')).toContain('x-request-timeout-ms: soon is not a number');
});

test('the log has one line per completion: its timeline, and nothing of the prompt', async () => {
  const gateway = await fakeGateway({ token: spelling('ab') });
  const secret = 'password = hunter2';
  await gateway.complete({ prompt: secret, suffix: secret, max_tokens: 5 });
  await gateway.complete({ prompt: secret, nonsense: secret });
  const line = () => gateway.lines.filter(({ message }) => message === 'completion');
  await expect.poll(() => line().length).toBe(2);
  const [done, refused] = JSON.parse(JSON.stringify(line()));
  expect(done).toMatchObject({
    request_id: expect.any(String),
    status: 200,
    usage: { completion_tokens: 2 },
    finish: ['stop'],
  });
  expect(Object.keys(done.timeline)).toEqual(
    expect.arrayContaining([
      'received',
      'admitted',
      'tokenized',
      'dispatched',
      'first_token',
      'joined',
      'last_token',
      'finished',
      'handoff_ms',
      'detokenize_ms',
    ]),
  );
  expect(refused).toMatchObject({ status: 400, code: 'invalid_request' });
  expect(JSON.stringify(gateway.lines)).not.toContain('hunter2');
});

test('the log has a sample of a completion where the operator asks for it: its shape, not its words', async () => {
  const gateway = await fakeGateway({ token: spelling('ab') }, { logSamplePercent: 100 });
  await gateway.complete({ prompt: 'key = "hunter2"\nx = ', suffix: '\nsecret()', max_tokens: 5 });
  await gateway.stream({ prompt: [5, 6], max_tokens: 5 });
  const samples = () => gateway.lines.flatMap(({ sample }) => (sample ? [JSON.parse(JSON.stringify(sample))] : []));
  await expect.poll(() => samples().length).toBe(2);
  expect(samples()).toEqual([
    { prompt: 'xxx = "xxxxxx9"\nx = ', suffix: '\nxxxxxx()', text: 'xx' },
    { prompt: '2 token ids', text: 'xx' },
  ]);
  expect(JSON.stringify(gateway.lines)).not.toMatch(/hunter2|secret/);
});

test("llm-d's header of a time per token chooses a decode worker whose steps keep it; one that is no time changes nothing", async () => {
  const otherWorkers = fakeWorkers({ token, stepMs: [5, 6, 7, 8] });
  const { app, workers } = await fakeGateway(
    { token, stepMs: [50, 60, 70, 80] },
    { otherWorkers, moreDecode: [OTHER_DECODE] },
  );
  const servedBy = async (objective: string) => {
    const before = otherWorkers.decodes.length;
    const headers = { 'x-llm-d-slo-tpot-ms': objective };
    const payload = { prompt: 'x', max_tokens: 3 };
    expect((await app.inject({ method: 'POST', url: '/v1/completions', headers, payload })).statusCode).toBe(200);
    return otherWorkers.decodes.length > before ? 'quick' : 'slow';
  };
  const servers = async (objective: string) => [await servedBy(objective), await servedBy(objective)].sort();
  expect(await servers('20')).toEqual(['quick', 'quick']);
  for (const objective of ['100', 'soon', '-1', '0', '']) {
    expect(await servers(objective)).toEqual(['quick', 'slow']); // in turns
  }
  expect(workers.decodes.length).toBe(5);
});
