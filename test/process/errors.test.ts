import { status } from '@grpc/grpc-js';
import { describe, expect, it } from 'vitest';
import {
  ERRORS,
  type ErrorCode,
  isErrorCode,
  remedyAfter,
  ServingError,
  withRemedy,
} from '../../services/lib/process/errors.ts';
import { documented } from '../support/operations.ts';

const codes = Object.keys(ERRORS) as ErrorCode[];

describe('the error table', () => {
  it.each(codes)('the error %s has a code in snake case, valid statuses and a remedy', (code) => {
    const { http, grpc, remedy } = ERRORS[code];
    expect(code).toMatch(/^[a-z]+(_[a-z]+)*$/);
    expect(http).toBeGreaterThanOrEqual(400);
    expect(http).toBeLessThan(600);
    expect(Object.keys(status)).toContain(grpc);
    expect(grpc).not.toBe('OK');
    expect(remedy).toMatch(/^[A-Z].{5,}\.$/);
  });

  it.each(codes.filter((code) => ERRORS[code].retryable))(
    'the error %s is retryable, so its status does not blame the request',
    (code) => {
      expect([408, 409, 429, 500, 502, 503, 504]).toContain(ERRORS[code].http);
      expect(['INVALID_ARGUMENT', 'OUT_OF_RANGE', 'UNIMPLEMENTED']).not.toContain(ERRORS[code].grpc);
    },
  );

  it('every error is documented in OPERATIONS.md, and nothing else is', () => {
    expect(documented('errors')).toEqual(codes);
  });
});

describe('remedyAfter', () => {
  it.each(codes)('the remedy of %s follows a message that does not give it, and is not said twice', (code) => {
    const { remedy } = ERRORS[code];
    expect(remedyAfter('the value 7 is wrong', code)).toBe(remedy);
    const own = `${remedy[0]!.toLowerCase()}${remedy.slice(1, -1)}`;
    expect(remedyAfter(`the value 7 is wrong: take 8, or ${own}`, code)).toBe('');
    expect(remedyAfter(`${own}, or wait`, code)).toBe('');
  });

  it('a failure that has a remedy of its own, or none to add, is not given the one of its code', () => {
    const own = 'Remove its folder.';
    expect(remedyAfter('step 7 is damaged', 'checkpoint_invalid', own)).toBe(own);
    expect(remedyAfter('step 7 is damaged: remove its folder', 'checkpoint_invalid', own)).toBe('');
    expect(remedyAfter('step 7 is damaged: remove its folder', 'checkpoint_invalid', '')).toBe('');
  });
});

describe('ServingError', () => {
  it('a failure keeps its own remedy where it is wrapped with the same code, and a task can give it one', async () => {
    const own = new ServingError('checkpoint_invalid', 'cut short', { remedy: 'Remove it.' });
    expect(new ServingError('checkpoint_invalid', 'row 1: cut short', { cause: own }).remedy).toBe('Remove it.');
    expect(new ServingError('internal', 'x', { cause: own }).remedy).toBe(ERRORS.internal.remedy);
    const failing = (code: ErrorCode) =>
      withRemedy('checkpoint_invalid', 'Go back.', () => Promise.reject(new ServingError(code, 'x')));
    await expect(failing('checkpoint_invalid')).rejects.toMatchObject({ message: 'x', remedy: 'Go back.' });
    await expect(failing('path_unusable')).rejects.toMatchObject({ remedy: ERRORS.path_unusable.remedy });
  });

  it('a ServingError carries its code, kind and details', () => {
    const cause = new Error('low');
    const error = new ServingError('saturated', 'queue full: 64 of 64', { param: 'n', retryAfterSeconds: 2, cause });
    expect(error).toMatchObject({
      name: 'ServingError',
      code: 'saturated',
      message: 'queue full: 64 of 64',
      param: 'n',
      retryAfterSeconds: 2,
      cause,
      kind: ERRORS.saturated,
    });
    expect(new ServingError('internal', 'x')).not.toHaveProperty('cause');
  });

  it('a foreign error becomes a ServingError with the foreign one as its cause', () => {
    const foreign = new TypeError('x is not a function');
    expect(ServingError.from(foreign)).toMatchObject({ code: 'internal', message: foreign.message, cause: foreign });
    expect(ServingError.from(foreign, 'runtime_failed').code).toBe('runtime_failed');
    expect(ServingError.from('text')).toMatchObject({ code: 'internal', message: 'text', cause: 'text' });
    expect(ServingError.from(undefined)).toMatchObject({ code: 'internal', message: 'undefined' });
  });

  it('a ServingError stays as it is when it is converted to one', () => {
    const own = new ServingError('draining', 'stopping');
    expect(ServingError.from(own, 'internal')).toBe(own);
  });

  it('isErrorCode tells error codes from other words', () => {
    expect(codes.every(isErrorCode)).toBe(true);
    expect(['', 'nope', 'toString', '__proto__', 'constructor'].some(isErrorCode)).toBe(false);
  });
});
