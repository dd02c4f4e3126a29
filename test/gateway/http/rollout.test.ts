/** Two bundles side by side in one gateway, over its HTTP API, with fake workers of both. */
import { expect, onTestFinished, test, vi } from 'vitest';
import type { CandidateModel } from '../../../services/gateway/candidates.ts';
import { inMemory, type StateStore } from '../../../services/gateway/rollout/state-store.ts';
import { Deferred } from '../../../services/lib/async/deferred.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { bearer, keyEntry, keysOf } from '../../support/api-keys.ts';
import {
  type Answer,
  type FakeGatewayOptions,
  fakeGateway,
  OTHER_DECODE,
  OTHER_PREFILL,
  spelling,
  tokenizer,
} from '../../support/fake-gateway.ts';
import { type FakeModel, FINGERPRINT, fakeWorkers } from '../../support/fake-workers.ts';

const CANDIDATE = 'c'.repeat(64);
const [OLD, NEXT] = [`fp_${FINGERPRINT.slice(0, 12)}`, `fp_${CANDIDATE.slice(0, 12)}`];
const TEXT = { [OLD]: 'return old', [NEXT]: 'return new' };

/** A gateway with workers of both bundles, each of which writes its own text. */
async function start(
  candidate: Partial<FakeModel> = {},
  options: FakeGatewayOptions = {},
  stable: Partial<FakeModel> = {},
) {
  const otherWorkers = fakeWorkers({ token: spelling(TEXT[NEXT]!), fingerprint: CANDIDATE, ...candidate });
  let closed = 0;
  const openModel = async (): Promise<CandidateModel> => ({
    fingerprint: CANDIDATE,
    contextFingerprint: 'context',
    hidden: 2,
    tokenizer,
    eosIds: [],
    retrieval: undefined,
    indexer: undefined,
    close: async () => void closed++,
  });
  const inspectBundle = async (dir: string) => {
    if (dir === '/bundles/next') return CANDIDATE;
    throw new ServingError('bundle_invalid', `${dir}: manifest.json cannot be read`);
  };
  const gateway = await fakeGateway(
    { token: spelling(TEXT[OLD]!), ...stable },
    {
      rollouts: true,
      openModel,
      inspectBundle,
      otherWorkers,
      morePrefill: [OTHER_PREFILL],
      moreDecode: [OTHER_DECODE],
      ...options,
    },
  );
  onTestFinished(() => gateway.closing.abort());
  const post = async (body: object, headers: Record<string, string> = {}) => {
    const answer = await gateway.app.inject({ method: 'POST', url: '/v1/rollout', payload: body, headers });
    return { status: answer.statusCode, ...answer.json<Record<string, unknown>>() };
  };
  const status = async () => (await gateway.app.inject({ url: '/v1/rollout' })).json<Record<string, unknown>>();
  const begin = async (share: number, more: object = {}) => {
    const answer = await post({ action: 'start', bundle: '/bundles/next', share, ...more });
    await vi.waitUntil(async () => (await status())['phase'] !== 'preparing', { timeout: 20_000 });
    return answer;
  };
  const ask = (session: string) => gateway.complete({ prompt: 'def f():\n', max_tokens: 8, session });
  return { ...gateway, otherWorkers, post, status, begin, ask, closed: () => closed };
}

const fingerprintOf = (answer: Answer) => (answer as unknown as { system_fingerprint: string }).system_fingerprint;
const sessions = (count: number) => Array.from({ length: count }, (_, i) => `session-${i}`);

/** Who served each of the sessions; every answer has the text of the bundle that it names. */
async function servedBy(ask: (session: string) => Promise<Answer>, count = 20): Promise<string[]> {
  const answers: Answer[] = [];
  for (const session of sessions(count)) answers.push(await ask(session));
  for (const answer of answers) {
    expect(answer.status).toBe(200);
    expect(answer.choices[0]!.text).toBe(TEXT[fingerprintOf(answer)]);
  }
  return answers.map(fingerprintOf);
}

test('a candidate gets its share by session, all requests when it is promoted, and none after a rollback', async () => {
  const { begin, post, ask, status } = await start();
  expect(await servedBy(ask)).toEqual(Array(20).fill(OLD));
  expect(await begin(40)).toMatchObject({ status: 200, candidate: { fingerprint: CANDIDATE }, share: 40 });
  expect(await status()).toMatchObject({ phase: 'canary', workers: { prefill: 1, decode: 1 }, problem: null });
  const canary = await servedBy(ask);
  expect(new Set(canary)).toEqual(new Set([OLD, NEXT]));
  expect(await servedBy(ask)).toEqual(canary);
  expect(await post({ action: 'promote' })).toMatchObject({ phase: 'promoted' });
  expect(await servedBy(ask)).toEqual(Array(20).fill(NEXT));
  expect(await post({ action: 'rollback' })).toMatchObject({ phase: 'none', candidate: null, share: 0 });
  expect(await servedBy(ask)).toEqual(Array(20).fill(OLD));
});

test('a share that grows keeps the sessions that it had, and by tenant all of a tenant go one way', async () => {
  const { begin, ask } = await start();
  await begin(30);
  const before = await servedBy(ask);
  await begin(70);
  const after = await servedBy(ask);
  for (const [i, by] of before.entries()) if (by === NEXT) expect(after[i]).toBe(NEXT);
  await begin(50, { by: 'tenant' });
  expect(new Set(await servedBy(ask)).size).toBe(1);
});

test('a request that runs ends with the bundle that it began with, while a rollback takes effect at once', async () => {
  let goOn = () => {};
  const until = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  const { begin, post, ask, otherWorkers, closed } = await start();
  await begin(100);
  otherWorkers.model.pauseAt = { stage: 'in decode', until };
  const running = ask('one');
  await otherWorkers.held();
  await post({ action: 'rollback' });
  expect(fingerprintOf(await ask('two'))).toBe(OLD);
  expect(closed()).toBe(0);
  goOn();
  const answer = await running;
  expect([answer.status, fingerprintOf(answer), answer.choices[0]!.text]).toEqual([200, NEXT, TEXT[NEXT]]);
  await vi.waitUntil(() => closed() === 1);
});

test('a candidate without usable workers costs no request, and says why it serves nothing', async () => {
  const { post, ask, status } = await start({ fingerprint: 'd'.repeat(64) });
  const before = (await metrics.rolloutFallbacks.get()).values[0]?.value ?? 0;
  await post({ action: 'start', bundle: '/bundles/next', share: 100 });
  await vi.waitUntil(async () => (await status())['problem'] === 'no worker of this bundle is left');
  expect(await servedBy(ask, 5)).toEqual(Array(5).fill(OLD));
  expect(((await metrics.rolloutFallbacks.get()).values[0]?.value ?? 0) - before).toBe(5);
  expect(await status()).toMatchObject({ phase: 'preparing' });
  expect(await post({ action: 'promote' })).toMatchObject({ status: 400, error: { code: 'invalid_request' } });
});

test('a request that the candidate’s workers fail before its answer begins is served by the other bundle, whole', async () => {
  const failAt = { stage: 'before first', error: new ServingError('runtime_failed', 'the device is gone') } as const;
  const { begin, ask, otherWorkers, stream } = await start();
  const { usage } = await ask('one');
  await begin(100);
  otherWorkers.model.failAt = failAt;
  const answer = await ask('one');
  expect([answer.status, fingerprintOf(answer), answer.choices[0]!.text]).toEqual([200, OLD, TEXT[OLD]]);
  expect(answer.usage).toEqual(usage);
  const events = await stream({ prompt: 'def f():\n', max_tokens: 8, session: 'two' });
  expect(new Set(events.map(fingerprintOf))).toEqual(new Set([OLD]));
  otherWorkers.model.failAt = { ...failAt, stage: 'in decode' };
  // Its first token is out: what goes on elsewhere would be another bundle's.
  const begun = await stream({ prompt: 'def g():\n', max_tokens: 8, session: 'three' });
  expect(new Set(begun.flatMap((event) => (event.error ? [] : [fingerprintOf(event)])))).toEqual(new Set([NEXT]));
  expect(begun.at(-1)!.error).toMatchObject({ code: 'runtime_failed' });
});

test('a look at the state that began before a change was written does not undo the change', async () => {
  const kept = inMemory();
  let release = () => {};
  const slow: StateStore = {
    read: () => kept.read(),
    write: async (state) => {
      await new Promise<void>((resolve) => {
        release = resolve;
      });
      await kept.write(state);
    },
  };
  const { rollout, post, status } = await start({}, { rolloutStore: slow });
  const closing = new AbortController();
  onTestFinished(() => closing.abort());
  const changing = post({ action: 'start', bundle: '/bundles/next', share: 100 });
  await vi.waitUntil(async () => (await status())['share'] === 100);
  void rollout.follow(closing.signal); // looks at once
  await new Promise((resolve) => setImmediate(resolve));
  expect(await status()).toMatchObject({ share: 100 });
  release();
  expect(await changing).toMatchObject({ share: 100 });
});

test('bundles are compared by their requests, times and what became of completions', async () => {
  const { begin, ask, app } = await start();
  await begin(100);
  const count = async (metric: keyof typeof metrics, labels: object) => {
    const { values } = await metrics[metric].get();
    const found = values.find((value) => Object.entries(labels).every(([k, v]) => (value.labels as never)[k] === v));
    return found?.value ?? 0;
  };
  const requests = () => count('armRequests', { arm: 'candidate', outcome: 'ok' });
  const taken = () => count('armEvents', { arm: 'candidate', event: 'select' });
  const timed = () => count('armTtft', { arm: 'candidate', le: '+Inf' });
  const [before, takenBefore, timedBefore] = [await requests(), await taken(), await timed()];
  const { id } = await ask('one');
  expect((await requests()) - before).toBe(1);
  const event = { type: 'select', completion_id: id, choice_index: 0 };
  expect((await app.inject({ method: 'POST', url: '/v1/events', payload: event })).statusCode).toBe(200);
  expect((await taken()) - takenBefore).toBe(1);
  expect((await timed()) - timedBefore).toBe(1);
});

test('two gateways over one store have the same rollout', async () => {
  const rolloutStore = inMemory();
  const [one, other] = [await start({}, { rolloutStore }), await start({}, { rolloutStore })];
  const closing = new AbortController();
  onTestFinished(() => closing.abort());
  for (const { rollout } of [one, other]) void rollout.follow(closing.signal);
  await one.begin(100);
  await vi.waitUntil(async () => (await other.status())['phase'] === 'canary', { timeout: 20_000 });
  expect(await servedBy(other.ask, 3)).toEqual(Array(3).fill(NEXT));
  await other.post({ action: 'rollback' });
  await vi.waitUntil(async () => (await one.status())['phase'] === 'none', { timeout: 20_000 });
  expect(await servedBy(one.ask, 3)).toEqual(Array(3).fill(OLD));
});

test('a start of the bundle that is the candidate changes what it names alone, and opens nothing anew', async () => {
  const { begin, post, rollout, closed } = await start();
  const asked = () => {
    const { indexer, share, by } = rollout.status.state!;
    return { indexer, share, by };
  };
  await begin(0, { indexer: '127.0.0.1:9', by: 'tenant' });
  await begin(30);
  expect(asked()).toEqual({ indexer: '127.0.0.1:9', share: 30, by: 'tenant' });
  await post({ action: 'promote' });
  await post({ action: 'start', bundle: '/bundles/next', by: 'session' });
  expect(asked()).toEqual({ indexer: '127.0.0.1:9', share: 30, by: 'session' });
  expect(rollout.status.phase).toBe('canary');
  expect(closed()).toBe(0);
  await begin(30, { indexer: '' });
  expect(asked()).toEqual({ indexer: '', share: 30, by: 'session' });
  await vi.waitUntil(() => closed() === 1);
  await post({ action: 'rollback' });
  await begin(30);
  expect(asked()).toEqual({ indexer: '', share: 30, by: 'session' });
});

test('what another gateway was told a moment ago is kept by a start and a promotion at this one', async () => {
  const rolloutStore = inMemory();
  const [one, other] = [await start({}, { rolloutStore }), await start({}, { rolloutStore })]; // neither looks
  await one.begin(0, { indexer: '127.0.0.1:9', by: 'tenant' });
  await other.begin(30);
  expect(await rolloutStore.read()).toMatchObject({ indexer: '127.0.0.1:9', share: 30, by: 'tenant' });
  await one.begin(60, { by: 'session' });
  await other.post({ action: 'promote' });
  expect(await rolloutStore.read()).toMatchObject({ indexer: '127.0.0.1:9', share: 60, by: 'session', promoted: true });
  await one.post({ action: 'rollback' });
  expect(await other.post({ action: 'promote' })).toMatchObject({ status: 400, error: { code: 'invalid_request' } });
  expect(await rolloutStore.read()).toBeUndefined();
});

/** A store whose next read, or write, waits after it was asked for until it is let go. */
function slowStore() {
  const kept = inMemory();
  const held = new Map<'read' | 'write', Deferred<void>>();
  let waiting = 0;
  const wait = async (kind: 'read' | 'write') => {
    const gate = held.get(kind);
    held.delete(kind);
    if (gate === undefined) return;
    waiting++;
    await gate.promise;
  };
  const store: StateStore = {
    read: async () => {
      const state = await kept.read();
      await wait('read');
      return state;
    },
    write: async (state) => {
      await wait('write');
      await kept.write(state);
    },
  };
  const hold = (kind: 'read' | 'write') => {
    const gate = new Deferred<void>();
    held.set(kind, gate);
    return gate.resolve;
  };
  return { kept, store, hold, isWaiting: () => vi.waitUntil(() => waiting > 0, { timeout: 20_000 }) };
}

test.each([
  [{ action: 'promote' }, { status: 400, error: { message: expect.stringContaining('no rollout is under way') } }],
  [
    { action: 'start', bundle: '/bundles/next', share: 60 },
    { status: 200, share: 60, by: 'session' },
  ],
])(
  'a rollback is heard at once while %j reads the state, which is made of the state after it',
  async (change, answer) => {
    const { kept, store, hold, isWaiting } = slowStore();
    const { begin, post } = await start({}, { rolloutStore: store });
    await begin(30, { by: 'tenant' });
    const letGo = hold('read');
    const changing = post(change);
    await isWaiting();
    expect(await post({ action: 'rollback' })).toMatchObject({ status: 200, phase: 'none' });
    expect(await kept.read()).toBeUndefined();
    letGo();
    expect(await changing).toMatchObject(answer);
    expect((await kept.read())?.share).toBe((change as { share?: number }).share);
  },
);

test('a rollback is written after the promotion that is being written', async () => {
  const { kept, store, hold, isWaiting } = slowStore();
  const { begin, post, rollout } = await start({}, { rolloutStore: store });
  await begin(30);
  const letGo = hold('write');
  const promoting = post({ action: 'promote' });
  await isWaiting();
  const rollingBack = post({ action: 'rollback' });
  await vi.waitUntil(() => rollout.status.phase === 'none', { timeout: 20_000 });
  letGo();
  await Promise.all([promoting, rollingBack]);
  expect(await kept.read()).toBeUndefined();
});

test('a candidate that another gateway has begun meanwhile is not promoted, and the refusal names it', async () => {
  const rolloutStore = inMemory();
  const { begin, post } = await start({}, { rolloutStore });
  await begin(30);
  const other = { ...(await rolloutStore.read())!, bundle: '/bundles/third', fingerprint: 'd'.repeat(64) };
  await rolloutStore.write(other);
  const refused = {
    status: 400,
    error: { message: expect.stringContaining('the candidate has changed, to /bundles/third') },
  };
  expect(await post({ action: 'promote' })).toMatchObject(refused);
  expect(await rolloutStore.read()).toEqual(other);
});

test('a start overwrites a stored state that is damaged, and a promotion does not', async () => {
  const kept = inMemory();
  let isDamaged = false;
  const damaged = new ServingError('store_invalid', 'the key holds no state of a rollout: remove it');
  const rolloutStore: StateStore = {
    read: () => (isDamaged ? Promise.reject(damaged) : kept.read()),
    write: async (state) => {
      isDamaged = false;
      await kept.write(state);
    },
  };
  const { begin, post } = await start({}, { rolloutStore });
  await begin(30, { by: 'tenant' });
  isDamaged = true;
  expect(await post({ action: 'promote' })).toMatchObject({ error: { code: 'store_invalid' } });
  expect(await post({ action: 'start', bundle: '/bundles/next' })).toMatchObject({
    status: 200,
    share: 5,
    by: 'session',
  });
  expect(await kept.read()).toMatchObject({ share: 5, promoted: false });
});

test('a rollout is an admin’s, off by default, and of a bundle that can take part', async () => {
  const keys = await keysOf([keyEntry('boss', 'acme'), keyEntry('editor', 'acme', { access: 'index' })]);
  const { post } = await start({}, { keys });
  const body = { action: 'start', bundle: '/bundles/next' };
  expect(await post(body, bearer('editor'))).toMatchObject({ status: 403 });
  expect(await post(body, bearer('boss'))).toMatchObject({ status: 200, share: 5, by: 'session' });
  const off = await start({}, { rollouts: false });
  expect(await off.post(body)).toMatchObject({ status: 404, error: { code: 'not_found' } });
  const refused = async (wrong: object, message: RegExp) =>
    expect(await off.post(wrong)).toMatchObject({ status: 400, error: { message: expect.stringMatching(message) } });
  const on = await start();
  expect(await on.post({ ...body, bundle: '/nope' })).toMatchObject({ status: 400, error: { param: 'bundle' } });
  await refused({ action: 'fly' }, /action/);
  await refused({ ...body, share: 101 }, /share/);
});
