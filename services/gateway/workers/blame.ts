/**
 * This file decides whose fault a failure is, and what follows from it. Pure: one table for the codes of
 * lib/process/errors.ts.
 *
 *   code                                          the worker that failed        its part of the request
 *   ------------------------------------------    --------------------------    --------------------------------------
 *   worker_lost, worker_stalled, draining         gone until it answers again   replayed at once, by other workers
 *   fingerprint_mismatch, not_a_member            gone until it answers again   replayed at once, by other workers
 *   runtime_failed                                blamed                        replayed after a pause
 *   kv_truncated, kv_digest_mismatch              blamed, and prefill as well   replayed after a pause
 *   deadline_exceeded, client_gone, superseded    not blamed                    not replayed: nobody waits for it
 *   slow_reader                                   not blamed                    not replayed: the client does not read
 *   saturated                                     not blamed                    back to the queue after a pause
 *   other retryable codes (lease_…)               not blamed                    replayed after a pause
 *   other codes of HTTP status 500 and above      blamed                        not replayed: it would fail again
 *   other codes of HTTP status below 500          not blamed                    not replayed: the client must mend it
 *
 * A worker that is blamed for several failures in a row is left alone for a while (its circuit breaker opens).
 */
import type { ErrorCode, ServingError } from '../../lib/process/errors.ts';

/** The worker stops serving this gateway. Other workers can take over at once. */
const GONE: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'worker_lost',
  'worker_stalled',
  'draining',
  'not_a_member',
  'fingerprint_mismatch', // it came back with another bundle: asking it again is of no use, asking others is
]);

/** Retryable, and yet the fault of this worker, or of the network between prefill and decode worker. */
const RETRYABLE_AND_BLAMED: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'runtime_failed',
  'kv_truncated',
  'kv_digest_mismatch',
]);

/** The client will not see the end of these. */
const FINAL: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['deadline_exceeded', 'client_gone', 'superseded']);

/** Whether the worker must answer again before it is given more work. */
export const isGone = ({ code }: ServingError): boolean => GONE.has(code);

/** Whether the failure counts against the worker. Retryable failures are usually not the worker's fault. */
export const isBlamed = ({ code, kind }: ServingError): boolean =>
  kind.http >= 500 && (!kind.retryable || RETRYABLE_AND_BLAMED.has(code));

/**
 * Whether a failure of decode is held against the prefill worker too: when KV does not come, either end may be at
 * fault. The faulty end also fails in other transfers, so its breaker opens first.
 */
export const isSharedWithPrefill = ({ code }: ServingError): boolean => code.startsWith('kv_');

/** Whether another attempt, by other workers or later, may succeed. */
export const isReplayable = ({ code, kind }: ServingError): boolean =>
  !FINAL.has(code) && (kind.retryable || GONE.has(code));

/** Whether other workers can take over at once; other failures are tried again after a pause. */
export const isReplayableAtOnce = (failure: ServingError): boolean => isGone(failure);
