/**
 * What the operator page shows of requests: those of the last minutes with their timelines, how far the running ones
 * are, and the KV caches that are on their way between workers. All of it is made of each request's timeline and of its
 * log line, so it holds figures, names and codes, and no text of clients. Nothing is recorded where there is no page.
 */
import { type Activity, KV_BYTES, type RequestEvent, type Timeline } from '../../lib/request/timeline.ts';

/**
 * Bytes of the requests that are kept, as JSON. One takes about 1 KB, so that these are the last 2,000 or so: minutes
 * at the rates that one gateway serves.
 */
const KEPT_BYTES = 2 * 1024 * 1024;
/** Activities that are kept of one request: a prompt with many choices has two for each. */
const MOST_ACTIVITIES = 48;
/** Marks that are kept of one activity; there are two today. */
const MOST_MARKS = 8;
/** Pairs of workers whose hand-overs are counted. Of more, those go that have not been used for the longest time. */
const MOST_PAIRS = 1_024;

/** One stretch of a request, for the waterfall. Times are ms since the request's `received`. */
interface FlightActivity {
  readonly name: string;
  readonly worker: string | undefined;
  readonly source: string | undefined;
  readonly from_ms: number;
  /** undefined where it went on after the request's end. */
  to_ms: number | undefined;
  error: string | undefined;
  readonly marks: { readonly name: string; readonly at_ms: number }[];
}

/** A request that has ended. */
export interface FlownRequest {
  /** Counts the requests of this gateway: a reader asks for those after the last one it has. */
  readonly number: number;
  readonly request_id: string;
  /** When it ended, in ISO 8601. */
  readonly ended_at: string;
  readonly route: string;
  readonly activities: readonly FlightActivity[];
  /** Activities that are not kept. */
  readonly activities_left_out: number;
  /** The fields of its log line. */
  readonly [field: string]: unknown;
}

/** The KV caches that one decode worker takes from one prefill worker, as this gateway has had it done. */
export interface HandOvers {
  readonly from: string;
  readonly to: string;
  /** Decode calls that have not got all of the KV yet. */
  flying: number;
  /** Hand-overs that succeeded since the gateway started, and the bytes of KV that were pulled for them. */
  done: number;
  bytes: number;
}

interface Head {
  readonly id: string;
  readonly route: string;
}

/** A request that runs. */
export interface Flight {
  /** The request has ended. @param line the fields of its log line; undefined for one that is not to be kept. */
  end(line: Readonly<Record<string, unknown>> | undefined): void;
}

export class FlightRecorder {
  readonly #keptBytes: number;
  readonly #kept: { readonly number: number; readonly json: Buffer }[] = [];
  #bytes = 0;
  #ended = 0;
  readonly #running = new Set<Timeline>();
  readonly #handOvers = new Map<string, HandOvers>();

  constructor(keptBytes = KEPT_BYTES) {
    this.#keptBytes = keptBytes;
  }

  /** Number of the request that ended last; 0 before there is one. */
  get last(): number {
    return this.#ended;
  }

  /** How many requests run, by the event that came last in them; `arrived` is before the first one. */
  get phases(): Readonly<Partial<Record<RequestEvent | 'arrived', number>>> {
    const phases: Partial<Record<RequestEvent | 'arrived', number>> = {};
    for (const { latest = 'arrived' } of this.#running) phases[latest] = (phases[latest] ?? 0) + 1;
    return phases;
  }

  get handOvers(): readonly Readonly<HandOvers>[] {
    return [...this.#handOvers.values()];
  }

  /**
   * The newest requests that ended after another one, in the order of their ends.
   * @param after number of the request that the reader has; 0 for all that are kept.
   * @param most how many are given; the older ones are left out.
   */
  since(after: number, most: number): FlownRequest[] {
    const newer = this.#kept.filter(({ number }) => number > after).slice(-most);
    return newer.map(({ json }) => JSON.parse(json.toString()) as FlownRequest);
  }

  /** Follows a request from its beginning. */
  begin(timeline: Timeline, { id, route }: Head): Flight {
    const beganMs = performance.now();
    const activities: FlightActivity[] = [];
    let leftOut = 0;
    this.#running.add(timeline);
    timeline.onBegin((activity) => {
      if (activity.name === 'decode') this.#followHandOver(activity);
      if (activities.length === MOST_ACTIVITIES) leftOut++;
      else activities.push(following(activity));
    });
    return {
      end: (line) => {
        this.#running.delete(timeline);
        if (line === undefined) return;
        const zero = timeline.at('received') ?? beganMs;
        this.#keep({
          ...line,
          number: ++this.#ended,
          request_id: id,
          ended_at: new Date().toISOString(),
          route,
          activities: activities.map((each) => since(zero, each)),
          activities_left_out: leftOut,
        });
      },
    };
  }

  #keep(request: FlownRequest): void {
    const json = Buffer.from(JSON.stringify(request));
    this.#kept.push({ number: request.number, json });
    this.#bytes += json.length;
    while (this.#bytes > this.#keptBytes) this.#bytes -= this.#kept.shift()!.json.length;
  }

  /** A decode call has its KV on the way until the sequence has joined the batch, or the call has failed before. */
  #followHandOver(activity: Activity): void {
    const { source, worker } = activity;
    if (source === undefined || worker === undefined) return;
    const pair = this.#pairOf(source, worker);
    pair.flying++;
    let flies = true;
    const landed = () => {
      if (flies) pair.flying--;
      flies = false;
    };
    activity.observe({
      event: (name, _, facts) => {
        if (name !== 'joined') return;
        landed();
        pair.done++;
        pair.bytes += Number(facts?.[KV_BYTES] ?? 0);
      },
      end: landed,
    });
  }

  #pairOf(from: string, to: string): HandOvers {
    const name = `${from} ${to}`;
    const pair = this.#handOvers.get(name) ?? { from, to, flying: 0, done: 0, bytes: 0 };
    // The one that was used last stands at the end.
    this.#handOvers.delete(name);
    this.#handOvers.set(name, pair);
    for (const [oldest, { flying }] of this.#handOvers) {
      if (this.#handOvers.size <= MOST_PAIRS) break;
      if (flying === 0) this.#handOvers.delete(oldest);
    }
    return pair;
  }
}

/** Notes what happens in an activity, in ms of the monotonic clock. */
function following(activity: Activity): FlightActivity {
  const { name, worker, source, beganMs } = activity;
  const noted: FlightActivity = {
    name,
    worker,
    source,
    from_ms: beganMs,
    to_ms: undefined,
    error: undefined,
    marks: [],
  };
  activity.observe({
    event: (mark, atMs) => {
      if (noted.marks.length < MOST_MARKS) noted.marks.push({ name: mark, at_ms: atMs });
    },
    end: (atMs, error) => {
      noted.to_ms = atMs;
      noted.error = error;
    },
  });
  return noted;
}

/** The same with times since `zeroMs`. */
function since(zeroMs: number, { from_ms, to_ms, marks, ...rest }: FlightActivity): FlightActivity {
  const after = (atMs: number) => Math.round((atMs - zeroMs) * 1000) / 1000;
  return {
    ...rest,
    from_ms: after(from_ms),
    to_ms: to_ms === undefined ? undefined : after(to_ms),
    marks: marks.map(({ name, at_ms }) => ({ name, at_ms: after(at_ms) })),
  };
}
