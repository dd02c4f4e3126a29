/**
 * When a worker is lost, its part of a request is done again by others: the prompt and what was put out so far go
 * through prefill once more, and sampling goes on where it stopped. As draws depend on (seed, position) alone and every
 * request has a seed (ours where the client gave none), this continues greedy and random output alike, of any number of
 * choices. A choice that had to make way for another tenant, or whose worker was full, goes on in the same way; nothing
 * was lost then, so this is bounded by the request's deadline, and before the first output by a number of full workers.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import { PREEMPTED } from '../admission/queued-prompt.ts';
import { isReplayable, isReplayableAtOnce } from '../workers/blame.ts';

const FIRST_PAUSE_MS = 50;
/**
 * Longest pause before a full worker is asked again, in ms: within this time the gateway hears from every worker how
 * full it is.
 */
const LONGEST_PAUSE_MS = 1_000;
/** Full workers in a row after which a request without output is refused: about 5 s. */
const MOST_REFUSALS = 13;
/** Failures that the metric has counted: several choices may fail of one error. */
const counted = new WeakSet<ServingError>();

/** How often a part of a request was tried so far. */
export interface Tries {
  /** Workers that were lost. */
  readonly replays: number;
  /** Workers in a row that were full. */
  readonly refusals: number;
}

export const NO_TRIES: Tries = { replays: 0, refusals: 0 };

/** Why a part of a request needs workers once more. */
type Reason = 'preempted' | 'full' | 'lost';

const reasonOf = (error: unknown): Reason => {
  if (error === PREEMPTED) return 'preempted';
  return ServingError.from(error).code === 'saturated' ? 'full' : 'lost';
};

/**
 * @param hasOutput whether the client has had output of the request.
 * @throws the error itself where another attempt would not help, or there were enough.
 */
export function assertRepeatable(
  error: unknown,
  { replays, refusals }: Tries,
  maxReplays: number,
  hasOutput: boolean,
): void {
  const reason = reasonOf(error);
  if (reason === 'full' && !hasOutput && refusals >= MOST_REFUSALS) throw error;
  if (reason !== 'lost') return;
  const failure = ServingError.from(error);
  if (!isReplayable(failure)) throw error;
  if (replays < maxReplays) return;
  if (!counted.has(failure)) metrics.replaysExhausted.inc({ reason: failure.code });
  counted.add(failure);
  throw error;
}

/**
 * Returns when the next attempt is due, and the tries including this one.
 * @throws the signal's reason.
 */
export async function pauseBeforeRepeat(error: unknown, { replays, refusals }: Tries, signal: AbortSignal) {
  signal.throwIfAborted();
  const reason = reasonOf(error);
  if (reason === 'preempted') return { reason, tries: { replays, refusals: 0 } };
  if (reason === 'full') {
    metrics.sequencesRequeued.inc();
    await pause(Math.min(FIRST_PAUSE_MS * 2 ** refusals, LONGEST_PAUSE_MS), signal);
    return { reason, tries: { replays, refusals: refusals + 1 } };
  }
  const failure = ServingError.from(error);
  metrics.replays.inc({ reason: failure.code });
  if (replays > 0 || !isReplayableAtOnce(failure)) await pause(FIRST_PAUSE_MS * 2 ** replays, signal);
  return { reason, tries: { replays: replays + 1, refusals: 0 } };
}

/** Full jitter, so that requests that failed together do not come back together. */
const pause = (longestMs: number, signal: AbortSignal) =>
  sleep(randomInt(longestMs) + 1, undefined, { signal }).catch(() => signal.throwIfAborted());
