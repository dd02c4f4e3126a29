/**
 * The open-loop load client: every request leaves at its intended time, whether or not earlier ones have been answered.
 * So a slow server cannot slow the load down and thereby hide its own queue (coordinated omission).
 */
import { setTimeout as delay } from 'node:timers/promises';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { ClientRecord } from './latency.ts';

export interface PlannedRequest {
  /** Intended send time, from the start of the run. */
  readonly atMs: number;
  readonly body: CompletionBody;
  /** The client hangs up this long after sending, unless the answer has ended by then. */
  readonly cancelAfterMs?: number;
}

interface ClientOptions {
  /** Time after which a request counts as failed. */
  readonly timeoutMs: number;
  /** The API key that every request carries. */
  readonly apiKey?: string | undefined;
  /** Further headers of every request. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Called when a request ends. */
  readonly onRecord?: (record: ClientRecord) => void;
  /** Ends the run, which then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

const CANCELLED = new Error('cancelled by the plan');

/**
 * Sends every request of the plan. Resolves when the last answer has ended, with the records in the order of the plan.
 */
export async function runOpenLoop(
  url: string,
  plan: readonly PlannedRequest[],
  options: ClientOptions,
): Promise<ClientRecord[]> {
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

/** Sends one request now and waits until it ends. A failure gives a record too, and does not reject. */
export async function sendOne(
  url: string,
  { atMs, body, cancelAfterMs }: PlannedRequest,
  index: number,
  startMs: number,
  { timeoutMs, apiKey, headers, signal }: ClientOptions,
): Promise<ClientRecord> {
  const clock = () => performance.now() - startMs;
  const cancel = new AbortController();
  const timer = cancelAfterMs === undefined ? undefined : setTimeout(() => cancel.abort(CANCELLED), cancelAfterMs);
  const timeout = AbortSignal.timeout(timeoutMs);
  const ends = AbortSignal.any([cancel.signal, timeout, ...(signal ? [signal] : [])]);
  const sentMs = clock();
  const chunksMs: number[] = [];
  const known = { index, intendedMs: atMs, sentMs, chunksMs };
  try {
    const onChunk = (at: number) => chunksMs.push(at - startMs);
    const { usage } = await streamCompletion(url, body, ends, { apiKey, headers, onChunk });
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
