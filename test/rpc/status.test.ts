/** Errors over gRPC: the caller gets the error that the server threw. */
import { Metadata, status } from '@grpc/grpc-js';
import { describe, expect, test } from 'vitest';
import { ERRORS, type ErrorCode, ServingError } from '../../services/lib/process/errors.ts';
import { fromStatus, toStatus } from '../../services/lib/rpc/status.ts';

const CODES = Object.keys(ERRORS) as ErrorCode[];
/** The error that grpc-js gives to the caller for a status. */
const received = (sent: ReturnType<typeof toStatus>) => Object.assign(new Error(`${sent.code}`), sent);

describe('status', () => {
  test.each(CODES)('the code %s arrives unchanged', (code) => {
    const sent = toStatus(new ServingError(code, `about "${code}"`, { retryAfterSeconds: 7, limit: 'max-inflight' }));
    expect(status[sent.code]).toBe(ERRORS[code].grpc);
    const error = fromStatus(received(sent), 'peer:1');
    expect(error).toBeInstanceOf(ServingError);
    expect(error).toMatchObject({ code, message: `about "${code}"`, retryAfterSeconds: 7, limit: 'max-inflight' });
  });

  test('an error without Retry-After arrives without one', () => {
    const sent = toStatus(new ServingError('worker_lost', 'gone'));
    expect(fromStatus(received(sent), 'peer:1').retryAfterSeconds).toBeUndefined();
  });

  test('an error of another type arrives as internal with its message', () => {
    const sent = toStatus(new TypeError('x is not a function'));
    expect(sent.code).toBe(status.INTERNAL);
    expect(fromStatus(received(sent), 'peer:1')).toMatchObject({ code: 'internal', message: 'x is not a function' });
  });

  test.each([
    [status.UNAVAILABLE, 'worker_lost'],
    [status.CANCELLED, 'worker_lost'],
    [status.DEADLINE_EXCEEDED, 'deadline_exceeded'],
    [status.INTERNAL, 'worker_lost'],
    [status.UNIMPLEMENTED, 'internal'],
    [status.UNKNOWN, 'internal'],
  ] as const)('the transport’s own status %i is %s, and names the peer', (code, expected) => {
    const foreign = received({ code, details: 'as the transport says', metadata: new Metadata() });
    expect(fromStatus(foreign, 'peer:1')).toMatchObject({ code: expected, message: 'peer:1: as the transport says' });
  });

  test('a transport status that becomes an error of the client has no public message', () => {
    const details = 'Received message larger than max';
    const foreign = received({ code: status.RESOURCE_EXHAUSTED, details, metadata: new Metadata() });
    const error = fromStatus(foreign, 'peer:1', true);
    expect(error).toMatchObject({ code: 'payload_too_large', message: `peer:1: ${details}` });
    expect(error.publicMessage).toBeUndefined();
  });

  test('only of a peer that reads what clients send a message stays public, and only if it was public there', () => {
    const own = new ServingError('invalid_request', 'files.0 is wrong');
    const over = (error: ServingError, quotesClient: boolean) =>
      fromStatus(received(toStatus(error)), 'peer:1', quotesClient).publicMessage;
    expect(over(own, true)).toBe('files.0 is wrong');
    expect(over(own, false)).toBeUndefined();
    const ofAnother = fromStatus(received(toStatus(own)), 'peer:1');
    expect(over(ofAnother, true)).toBeUndefined();
    expect(over(new ServingError('invalid_request', 'x', { cause: ofAnother }), true)).toBeUndefined();
  });

  test('a message is cut and cleaned so that it can be sent', () => {
    const details = (message: string) => toStatus(new ServingError('invalid_request', message)).details;
    expect(details('"\ud83d" is no JSON')).toBe('"\ufffd" is no JSON');
    const long = details('é'.repeat(30_000));
    expect(long).toMatch(/^é{1000}…$/);
    expect(details(`${'x'.repeat(999)}😀`)).toBe(`${'x'.repeat(999)}\ufffd…`); // cut between both halves
  });

  test('an unknown code falls back to the status', () => {
    const metadata = new Metadata();
    metadata.set('llavacode-code', 'toString');
    const foreign = received({ code: status.UNAVAILABLE, details: 'from the future', metadata });
    expect(fromStatus(foreign, 'peer:1')).toMatchObject({ code: 'worker_lost' });
  });
});
