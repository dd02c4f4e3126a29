/**
 * When a worker is lost, its part of a request is done again by others: the prompt and what was put out so far go
 * through prefill once more, and sampling goes on where it stopped. As draws depend on (seed, position) alone and every
 * request has a seed (ours where the client gave none), this continues greedy and random output alike, of any number of
 * choices.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import { isReplayable, isReplayableAtOnce } from '../workers/blame.ts';

const FIRST_PAUSE_MS = 50;
/** Failures that the metric has counted: several choices may fail of one error. */
const counted = new WeakSet<ServingError>();

/**
 * @param replays how often this part of the request was done again so far.
 * @throws the error itself where another attempt would not help, or there were enough.
 */
export function assertReplayable(error: unknown, replays: number, limit: number): void {
  const failure = ServingError.from(error);
  if (!isReplayable(failure)) throw error;
  if (replays < limit) return;
  if (!counted.has(failure)) metrics.replaysExhausted.inc({ reason: failure.code });
  counted.add(failure);
  throw error;
}

/**
 * Returns when the next attempt is due.
 * @throws the signal's reason.
 */
export async function pauseBeforeReplay(error: unknown, replays: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const failure = ServingError.from(error);
  metrics.replays.inc({ reason: failure.code });
  if (replays === 0 && isReplayableAtOnce(failure)) return;
  // Full jitter, so that requests that failed together do not retry together.
  await sleep(randomInt(FIRST_PAUSE_MS * 2 ** replays) + 1, undefined, { signal }).catch(() => signal.throwIfAborted());
}
