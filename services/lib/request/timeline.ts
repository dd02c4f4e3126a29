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

/** What may happen several times in a request, or side by side: waiting for workers, and calls to them. */
export type ActivityName = 'queue' | 'prefill' | 'decode' | 'follow';

/** What is told of an activity, as it happens. Times are ms of the monotonic clock. */
export interface ActivityObserver {
  event(name: string, atMs: number, facts?: Readonly<Record<string, string | number>>): void;
  /** @param error code of the error that it ended with. */
  end(atMs: number, error?: string): void;
}

/** One stretch of a request: from when to when, and whose worker it was. */
export class Activity {
  readonly name: ActivityName;
  /** Address of the worker that is called; undefined for waiting. */
  readonly worker: string | undefined;
  readonly beganMs: number;
  #observer: ActivityObserver | undefined;

  constructor(name: ActivityName, worker: string | undefined, beganMs: number) {
    this.name = name;
    this.worker = worker;
    this.beganMs = beganMs;
  }

  observe(observer: ActivityObserver): void {
    this.#observer = observer;
  }

  mark(event: string, facts?: Readonly<Record<string, string | number>>, atMs = performance.now()): void {
    this.#observer?.event(event, atMs, facts);
  }

  /** Ends it, once. @param error code of the error that it ended with. */
  end(error?: string, atMs = performance.now()): void {
    this.#observer?.end(atMs, error);
    this.#observer = undefined;
  }
}

export class Timeline {
  readonly #events = new Map<RequestEvent, number>();
  readonly #stages = new Map<TimelineStage, number>();
  #onBegin: ((activity: Activity) => void) | undefined;

  /** Is told of every activity from here on, when it begins. */
  onBegin(listener: (activity: Activity) => void): void {
    this.#onBegin = listener;
  }

  /** @param worker address of the worker that is called. */
  begin(name: ActivityName, worker?: string, atMs = performance.now()): Activity {
    const activity = new Activity(name, worker, atMs);
    this.#onBegin?.(activity);
    return activity;
  }

  /** Time of an event in ms of the monotonic clock; undefined if it has not happened. */
  at(event: RequestEvent): number | undefined {
    return this.#events.get(event);
  }

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
