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

/** The fact of the mark `joined` of a decode call: bytes of KV that were pulled for it. */
export const KV_BYTES = 'llavacode.kv.bytes';

/** What is told of an activity, as it happens. Times are ms of the monotonic clock. */
export interface ActivityObserver {
  event(name: string, atMs: number, facts?: Readonly<Record<string, string | number>>): void;
  /** @param error code of the error that it ended with. */
  end(atMs: number, error?: string): void;
}

/** Addresses of the workers that an activity is between. */
export type ActivityPlace = Partial<Pick<Activity, 'worker' | 'source'>>;

/** One stretch of a request: from when to when, and whose worker it was. */
export class Activity {
  readonly name: ActivityName;
  /** Address of the worker that is called; undefined for waiting. */
  readonly worker: string | undefined;
  /** Address of the worker whose KV the called one takes; undefined where it takes none. */
  readonly source: string | undefined;
  readonly beganMs: number;
  readonly #observers: ActivityObserver[] = [];

  constructor(name: ActivityName, beganMs: number, { worker, source }: ActivityPlace = {}) {
    this.name = name;
    this.worker = worker;
    this.source = source;
    this.beganMs = beganMs;
  }

  observe(observer: ActivityObserver): void {
    this.#observers.push(observer);
  }

  mark(event: string, facts?: Readonly<Record<string, string | number>>, atMs = performance.now()): void {
    for (const observer of this.#observers) observer.event(event, atMs, facts);
  }

  /** Ends it, once. @param error code of the error that it ended with. */
  end(error?: string, atMs = performance.now()): void {
    for (const observer of this.#observers.splice(0)) observer.end(atMs, error);
  }
}

export class Timeline {
  readonly #events = new Map<RequestEvent, number>();
  readonly #stages = new Map<TimelineStage, number>();
  readonly #onBegin: ((activity: Activity) => void)[] = [];

  /** Is told of every activity from here on, when it begins. */
  onBegin(listener: (activity: Activity) => void): void {
    this.#onBegin.push(listener);
  }

  /** An activity begins. @param place the workers that it is between; none for waiting. */
  begin(name: ActivityName, place: ActivityPlace = {}, atMs = performance.now()): Activity {
    const activity = new Activity(name, atMs, place);
    for (const listener of this.#onBegin) listener(activity);
    return activity;
  }

  /** The event that was stamped last; undefined before the first one. */
  get latest(): RequestEvent | undefined {
    return [...this.#events.keys()].at(-1);
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

  /**
   * The whole timeline for a log line: ms since `received` per event, ms per stage. A request that was refused before
   * its body was read has no such beginning, so its events have no times.
   */
  toJSON(): Record<string, number> {
    const start = this.#events.get('received');
    const round = (ms: number) => Math.round(ms * 1000) / 1000;
    return Object.fromEntries([
      ...(start === undefined ? [] : [...this.#events].map(([event, at]) => [event, round(at - start)] as const)),
      ...[...this.#stages].map(([stage, seconds]) => [`${stage}_ms`, round(seconds * 1000)] as const),
    ]);
  }

  stages(): Iterable<[TimelineStage, number]> {
    return this.#stages;
  }
}
