import { expect, test } from 'vitest';
import { errorBody } from '../../../services/gateway/http/errors.ts';
import { type ApiKeys, NO_KEYS } from '../../../services/gateway/tenants/api-keys.ts';
import { ERRORS, type ErrorCode, ServingError } from '../../../services/lib/process/errors.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

/** Stands in the message of every failure: an address, a path and a URL of the inside. */
const INSIDE = 'qzinside.cluster.local:9000';
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

test.each(codes.filter((code) => ERRORS[code].http < 500))(
  'a client with a key is told the message of a %s',
  (code) => {
    expect(errorBody(new ServingError(code, 'the field is wrong'), 'r-1', false).error.message).toContain('the field');
  },
);

test.each([false, true])(
  'no answer and no event names a worker to a client with a key (streamed: %s)',
  async (stream) => {
    const error = new ServingError('worker_lost', `${INSIDE}: connection refused`);
    for (const stage of ['before first', 'in decode'] as const) {
      const gateway = await fakeGateway({ token: () => 70, failAt: { stage, error } }, { keys: KEYS });
      const payload = { prompt: 'x', stream };
      const answer = await gateway.app.inject({ method: 'POST', url: '/v1/completions', payload });
      expect(answer.payload).toContain('worker_lost');
      expect(answer.payload).not.toContain(INSIDE);
      const line = () => gateway.lines.find(({ message }) => message === 'completion');
      await expect.poll(line).toMatchObject({ err: { message: expect.stringContaining(INSIDE) } });
    }
  },
);

test('a 503 for want of workers names their addresses only where no keys are needed', async () => {
  const refusalOf = async (keys: ApiKeys) => {
    const gateway = await fakeGateway({ token, fingerprint: 'other' }, { keys });
    const { status, error } = await gateway.complete({ prompt: 'x' });
    return `${status} ${error?.message}`;
  };
  expect(await refusalOf(NO_KEYS)).toMatch(/^503 .*127\.0\.0\.1:\d/);
  expect(await refusalOf(KEYS)).toMatch(/^503 (?!.*127\.0\.0\.1)/);
});
