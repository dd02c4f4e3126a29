/**
 * When a worker is lost, its part of a request is done again by others: the prompt and what was put out so far go through
 * prefill once more, and sampling goes on where it stopped. As draws depend on (seed, position) alone and every request has
 * a seed, ours where the client gave none, this continues greedy and random output alike, of any number of choices.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';

/** Nobody would be there to see the end of these. */
const FINAL: ReadonlySet<string> = new Set(['deadline_exceeded', 'client_gone', 'superseded']);
/** A worker that came back with another bundle: no use to ask it again, but others. */
const ELSEWHERE = 'fingerprint_mismatch';
/** Other workers can take over from these at once; the rest is tried again after a pause. */
const AT_ONCE: ReadonlySet<string> = new Set(['worker_lost', 'worker_stalled', 'draining', ELSEWHERE]);
const FIRST_PAUSE_MS = 50;
/** Several choices may fail of one error. */
const counted = new WeakSet<ServingError>();

/**
 * @param replays how often this part of the request was done again so far.
 * @throws the error itself where another try would not help, or there were enough.
 */
export function assertReplayable(error: unknown, replays: number, limit: number): void {
  const failure = ServingError.from(error);
  const mendable = failure.kind.retryable || failure.code === ELSEWHERE;
  if (!mendable || FINAL.has(failure.code)) throw error;
  if (replays < limit) return;
  if (!counted.has(failure)) metrics.replaysExhausted.inc({ reason: failure.code });
  counted.add(failure);
  throw error;
}

/**
 * Returns when the next try is due.
 * @throws the signal's reason.
 */
export async function pauseBeforeReplay(error: unknown, replays: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const { code } = ServingError.from(error);
  metrics.replays.inc({ reason: code });
  if (replays === 0 && AT_ONCE.has(code)) return;
  // Full jitter: those that failed together do not come back together.
  await sleep(randomInt(FIRST_PAUSE_MS * 2 ** replays) + 1, undefined, { signal }).catch(() => signal.throwIfAborted());
}
