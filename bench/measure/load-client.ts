/**
 * The open-loop load client: every request leaves at its intended time, whatever has come of the ones before. A slow
 * server cannot slow the load down and so hide its own queue (coordinated omission).
 */
import { setTimeout as delay } from 'node:timers/promises';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { RequestRecord } from './latency.ts';

export interface PlannedRequest {
  /** From the start of the run. */
  readonly atMs: number;
  readonly body: CompletionBody;
  /** The client hangs up so long after sending, if the answer has not ended by then. */
  readonly cancelAfterMs?: number;
}

export interface LoadOptions {
  /** A request that takes longer has failed. */
  readonly timeoutMs: number;
  /** Called as each request ends. */
  readonly onRecord?: (record: RequestRecord) => void;
  /** Ends the run; it then throws the signal's reason. */
  readonly signal?: AbortSignal;
}

const CANCELLED = new Error('cancelled by the plan');

/** Sends every request of the plan. Resolves, in the order of the plan, when the last answer has ended. */
export async function runOpenLoop(
  url: string,
  plan: readonly PlannedRequest[],
  options: LoadOptions,
): Promise<RequestRecord[]> {
  const startMs = performance.now();
  const records = await Promise.all(
    plan.map(async (request, index) => {
      const wait = request.atMs - (performance.now() - startMs);
      if (wait > 0) await delay(wait, undefined, { signal: options.signal });
      const record = await sendOne(url, request, index, startMs, options);
      options.onRecord?.(record);
      return record;
    }),
  );
  options.signal?.throwIfAborted();
  return records;
}

/** Sends one request now and waits for its end; a failure is a record as well. */
export async function sendOne(
  url: string,
  { atMs, body, cancelAfterMs }: PlannedRequest,
  index: number,
  startMs: number,
  { timeoutMs, signal }: LoadOptions,
): Promise<RequestRecord> {
  const clock = () => performance.now() - startMs;
  const cancel = new AbortController();
  const timer = cancelAfterMs === undefined ? undefined : setTimeout(() => cancel.abort(CANCELLED), cancelAfterMs);
  const timeout = AbortSignal.timeout(timeoutMs);
  const ends = AbortSignal.any([cancel.signal, timeout, ...(signal ? [signal] : [])]);
  const sentMs = clock();
  const chunksMs: number[] = [];
  const known = { index, intendedMs: atMs, sentMs, chunksMs };
  try {
    const { usage } = await streamCompletion(url, body, ends, { onChunk: (at) => chunksMs.push(at - startMs) });
    return {
      ...known,
      endedMs: clock(),
      promptTokens: usage.prompt_tokens,
      softTokens: usage.prompt_tokens_details?.soft_tokens ?? 0,
      cachedTokens: usage.prompt_tokens_details?.cached_tokens ?? 0,
      outputTokens: usage.completion_tokens,
      outcome: 'ok',
    };
  } catch (error) {
    const nothing = { promptTokens: 0, softTokens: 0, cachedTokens: 0, outputTokens: 0 };
    const ended = { ...known, endedMs: clock(), ...nothing };
    if (cancel.signal.aborted) return { ...ended, outcome: 'cancelled' };
    return {
      ...ended,
      outcome: 'failed',
      code: timeout.aborted ? 'deadline_exceeded' : ServingError.from(error, 'worker_lost').code,
    };
  } finally {
    clearTimeout(timer);
  }
}
