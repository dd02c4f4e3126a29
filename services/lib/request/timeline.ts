/**
 * The events in the life of one completion. Metrics, logs, bench and README use these names.
 *
 *   received ─ admitted ─ retrieved ─ tokenized ─ dispatched ─ first_token ─ joined ─ last_token ─ finished
 *                                     (gateway)     │ prefill: queue, prefill       │
 *                                                   └ decode: queue, handoff ───────┘ steps
 *
 * When a worker is lost, `replayed` comes between two of them.
 *
 * Only the gateway's monotonic clock stamps events. A worker reports durations by its own clock
 * ({@link TimelineStage}), since the clocks of two processes cannot be compared.
 */

export const EVENTS = [
  'received', // the last byte of the request body was read
  'admitted', // validated, and a place among the running requests reserved
  'retrieved', // chunks found, or retrieval given up
  'tokenized', // prompt built
  'dispatched', // sent to the prefill worker
  'first_token', // prefill's token reached the gateway
  'replayed', // a worker was lost, and others repeat its part of the request
  'joined', // KV handed over, sequence in the decode batch
  'last_token',
  'finished', // last byte handed to the socket
] as const;
export type RequestEvent = (typeof EVENTS)[number];

/** Durations that workers report, and the time that the gateway spends on detokenizing; in seconds. */
export const STAGES = ['prefill_queue', 'prefill', 'decode_queue', 'handoff', 'handoff_exposed', 'detokenize'] as const;
export type TimelineStage = (typeof STAGES)[number];

/** Stages between two events of the gateway's clock. With {@link STAGES} they are the values of the label `stage`. */
export const SPANS = {
  admit: ['received', 'admitted'],
  retrieve: ['admitted', 'retrieved'],
  tokenize: ['retrieved', 'tokenized'],
  dispatch: ['tokenized', 'dispatched'],
  first_token: ['dispatched', 'first_token'],
  decode: ['first_token', 'last_token'],
} as const satisfies Record<string, readonly [RequestEvent, RequestEvent]>;
export type TimelineSpan = keyof typeof SPANS;

export class Timeline {
  readonly #events = new Map<RequestEvent, number>();
  readonly #stages = new Map<TimelineStage, number>();

  /** Stamps an event, in ms of the monotonic clock. The first stamp of an event stays. */
  mark(event: RequestEvent, atMs = performance.now()): void {
    if (!this.#events.has(event)) this.#events.set(event, atMs);
  }

  stage(stage: TimelineStage, seconds: number): void {
    this.#stages.set(stage, seconds);
  }

  /** Seconds from one event to another; undefined if either has not happened. */
  between(from: RequestEvent, to: RequestEvent): number | undefined {
    const start = this.#events.get(from);
    const end = this.#events.get(to);
    return start === undefined || end === undefined ? undefined : (end - start) / 1000;
  }

  /** Time to first token, in seconds: request received to first token. */
  get ttft(): number | undefined {
    return this.between('received', 'first_token');
  }

  /** The whole timeline for a log line: ms since `received` per event, ms per stage. */
  toJSON(): Record<string, number> {
    const start = this.#events.get('received') ?? 0;
    const round = (ms: number) => Math.round(ms * 1000) / 1000;
    return Object.fromEntries([
      ...[...this.#events].map(([event, at]) => [event, round(at - start)] as const),
      ...[...this.#stages].map(([stage, seconds]) => [`${stage}_ms`, round(seconds * 1000)] as const),
    ]);
  }

  stages(): Iterable<[TimelineStage, number]> {
    return this.#stages;
  }
}
