import { expect, test } from 'vitest';
import {
  isBlamed,
  isGone,
  isReplayable,
  isReplayableAtOnce,
  isSharedWithPrefill,
} from '../../../services/gateway/workers/blame.ts';
import { ERRORS, type ErrorCode, ServingError } from '../../../services/lib/process/errors.ts';

const codes = Object.keys(ERRORS) as ErrorCode[];
const where = (rule: (failure: ServingError) => boolean) => codes.filter((code) => rule(new ServingError(code, '')));

test('a worker is gone, and its work replayed at once, after these errors', () => {
  const gone = ['worker_lost', 'worker_stalled', 'draining', 'fingerprint_mismatch', 'not_a_member'];
  expect(where(isGone).sort()).toEqual(gone.sort());
  expect(where(isReplayableAtOnce).sort()).toEqual(gone.sort());
});

test('of the retryable errors only these count against a worker that stays', () => {
  const blamed = where(isBlamed).filter((code) => ERRORS[code].retryable);
  expect(blamed.sort()).toEqual(['kv_digest_mismatch', 'kv_truncated', 'runtime_failed']);
});

test('errors that are not retryable count against the worker, unless the client must mend them', () => {
  for (const code of codes.filter((each) => !ERRORS[each].retryable)) {
    expect(isBlamed(new ServingError(code, '')), code).toBe(ERRORS[code].http >= 500);
  }
});

test('a KV cache that does not come is held against prefill as well', () => {
  const shared = ['kv_digest_mismatch', 'kv_handle_untrusted', 'kv_layout_mismatch', 'kv_truncated'];
  expect(where(isSharedWithPrefill).sort()).toEqual(shared);
});

test('retryable errors are replayed, except when nobody waits for the answer any more', () => {
  for (const code of codes) {
    const gone = code === 'fingerprint_mismatch' || code === 'not_a_member';
    const expected = code !== 'deadline_exceeded' && (ERRORS[code].retryable || gone);
    expect(isReplayable(new ServingError(code, '')), code).toBe(expected);
  }
});
