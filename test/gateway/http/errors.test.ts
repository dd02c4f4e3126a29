import { describe, expect, test } from 'vitest';
import { errorBody } from '../../../services/gateway/http/errors.ts';
import { type ApiKeys, NO_KEYS } from '../../../services/gateway/tenants/api-keys.ts';
import { ERRORS, type ErrorCode, ServingError } from '../../../services/lib/process/errors.ts';
import type { Retrieval } from '../../../services/lib/rag/search/retrieval.ts';
import type { Store } from '../../../services/lib/rag/store/store.ts';
import type { IndexerClient } from '../../../services/lib/rpc/contract.ts';
import { fromStatus, toStatus } from '../../../services/lib/rpc/status.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

/** Stand in the message of every failure: an address and a path of the inside. */
const INSIDE = 'qzinside.cluster.local:9000';
const PATH = '/srv/qzbundle';
const token = spelling('ab');
const codes = Object.keys(ERRORS) as ErrorCode[];
const failuresOf = codes.filter((code) => ERRORS[code].http >= 500);
/** Keys that let everybody in: what counts is that there are some. */
const KEYS: ApiKeys = { tenants: NO_KEYS.tenants, identify: NO_KEYS.identify };

test.each(failuresOf)('a client with a key is not told what a %s names of the inside', (code) => {
  const { message } = errorBody(new ServingError(code, `${INSIDE}: /srv/bundle`), 'r-1', false).error;
  expect(message).not.toContain(INSIDE);
  expect(message).not.toContain('/srv');
  expect(message).toContain('r-1');
  expect(message).toContain(ERRORS[code].remedy);
});

test('a client is told the remedy of a failure once, also where the message gives it', () => {
  const failure = new ServingError('out_of_memory', 'the KV pool needs 9 GiB; lower --slots or --capacity');
  const { message } = errorBody(failure, 'r-1', true).error;
  expect(message).toBe('the KV pool needs 9 GiB; lower --slots or --capacity.');
});

test.each(codes.filter((code) => ERRORS[code].http < 500))(
  'a client with a key is told the message of a %s',
  (code) => {
    expect(errorBody(new ServingError(code, 'the field is wrong'), 'r-1', false).error.message).toContain('the field');
  },
);

/** Everything that a client gets of an answer. */
const allOf = (answer: { headers: object; payload: string }) => JSON.stringify(answer.headers) + answer.payload;
const expectNothingInside = (answer: { headers: object; payload: string }) => {
  for (const part of [INSIDE, PATH]) expect(allOf(answer)).not.toContain(part);
};

describe.each(codes)('%s', (code) => {
  const error = new ServingError(code, `${INSIDE}: ${PATH} failed`, { retryAfterSeconds: 1, limit: 'slots' });

  const stages = [
    [false, 'before accepted'],
    [false, 'in decode'],
    [true, 'before first'],
    [true, 'in decode'],
  ] as const;
  // A sequence with output that a full worker refuses goes on later, so its client sees no error.
  const told = stages.filter(([, stage]) => code !== 'saturated' || stage !== 'in decode');
  test.each(told)(`a ${code} of a worker names nothing of the inside (streamed: %s, %s)`, async (stream, stage) => {
    const gateway = await fakeGateway({ token: () => 70, failAt: { stage, error } }, { keys: KEYS });
    const payload = { prompt: 'x', stream };
    const answer = await gateway.app.inject({ method: 'POST', url: '/v1/completions', payload });
    expectNothingInside(answer);
    expect(answer.payload).toContain(`"code":"${code}"`);
    const line = () => gateway.lines.find(({ message }) => message === 'completion');
    await expect.poll(line).toMatchObject({ err: { message: expect.stringContaining(INSIDE) } });
  });

  test(`a ${code} that an indexer has from elsewhere names nothing of the inside`, async () => {
    const elsewhere = new ServingError(code, error.message, { cause: Object.assign(new Error(), { syscall: 'open' }) });
    const fail = async (): Promise<never> => {
      const status = toStatus(elsewhere);
      throw fromStatus(Object.assign(new Error(`${status.code}`), status), INSIDE, true);
    };
    const indexer: IndexerClient = {
      async *index() {
        yield { kind: 'progress', progress: { files: 1, filesRead: 0, chunks: 0, embedded: 0 } };
        await fail();
      },
      delete: fail,
      encode: fail,
      reembed: fail,
      describe: async () => ({ fingerprint: '' }) as never,
      close: () => {},
    };
    const { app } = await fakeGateway({ token }, { keys: KEYS, indexer });
    const put = { method: 'PUT', url: '/v1/repos/shop', payload: { files: [] } } as const;
    const answers = [
      await app.inject(put),
      await app.inject({ ...put, headers: { accept: 'text/event-stream' } }),
      await app.inject({ method: 'DELETE', url: '/v1/repos/shop' }),
    ];
    for (const answer of answers) {
      expectNothingInside(answer);
      expect(answer.payload).toContain(`"code":"${code}"`);
    }
  });

  test(`a ${code} of the store names nothing of the inside`, async () => {
    const fail = async (): Promise<never> => {
      throw ServingError.from(new Error(error.message), code);
    };
    const store = { address: PATH, head: fail, snapshot: fail, repositories: fail } as unknown as Store;
    const retrieval = { retrieve: fail } as unknown as Retrieval;
    const { app } = await fakeGateway({ token }, { keys: KEYS, store, retrieval, contextFingerprint: 'c' });
    const payload = { prompt: 'x', max_tokens: 1, rag: { repo: 'shop', mode: 'text' } };
    for (const answer of [
      await app.inject({ url: '/v1/repos' }),
      await app.inject({ url: '/v1/repos/shop' }),
      await app.inject({ method: 'POST', url: '/v1/completions', payload }),
      await app.inject({ method: 'POST', url: '/v1/completions', payload: { ...payload, stream: true } }),
    ]) {
      expectNothingInside(answer);
    }
  });
});

test('what an indexer says about an upload reaches a client with a key', () => {
  const status = toStatus(new ServingError('invalid_request', 'files.0 path is empty'));
  const error = fromStatus(Object.assign(new Error(`${status.code}`), status), INSIDE, true);
  expect(errorBody(error, 'r-1', false).error.message).toMatch(/^files\.0 path is empty\. /);
});

test('an error of the system under a code that clients can mend is told in general words', () => {
  const cause = Object.assign(new Error(`connect ECONNREFUSED ${INSIDE}`), { syscall: 'connect' });
  const error = new ServingError('invalid_request', cause.message, { cause });
  expect(errorBody(error, 'r-1', false).error.message).toMatch(/^the service refused the request \(request r-1\)\. /);
  expect(errorBody(error, 'r-1', true).error.message).toContain(INSIDE);
});

test('a 503 for want of workers names their addresses only where no keys are needed', async () => {
  const refusalOf = async (keys: ApiKeys) => {
    const gateway = await fakeGateway({ token, fingerprint: 'other' }, { keys });
    const { status, error } = await gateway.complete({ prompt: 'x' });
    return `${status} ${error?.message}`;
  };
  expect(await refusalOf(NO_KEYS)).toMatch(/^503 .*127\.0\.0\.1:\d/);
  expect(await refusalOf(KEYS)).toMatch(/^503 (?!.*127\.0\.0\.1)/);
});
