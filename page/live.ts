/** What the page keeps of the live stream: the newest state, the last minutes as series, and the newest requests. */
import { useEffect, useState } from 'preact/hooks';
import type { LiveBody, RequestBody } from '../services/gateway/http/admin-answers.ts';
import { median } from './format.ts';
import { followLive, Refusal } from './gateway.ts';

/** One second of the charts. */
export interface Sample {
  /** Seconds since 1970, by this browser's clock. */
  readonly at: number;
  readonly waiting: number;
  readonly running: number;
  readonly busySlots: number;
  /** Median time to first token of the requests that ended in this second, in ms; null where there was none. */
  readonly ttftMs: number | null;
  /** Hand-overs that succeeded in this second. */
  readonly handedOver: number;
}

export interface Live {
  /** Counts the events: what moves is drawn anew with each. */
  readonly tick: number;
  readonly state: LiveBody | undefined;
  /** Hand-overs that succeeded since the event before, by `from to`. */
  readonly landed: ReadonlyMap<string, number>;
  readonly samples: readonly Sample[];
  /** The newest first. */
  readonly requests: readonly RequestBody[];
  /** What is wrong with the connection; undefined where it stands. */
  readonly problem: string | undefined;
  /** The gateway wants another key. */
  readonly needsKey: boolean;
}

/** Seconds of the charts. */
const SAMPLES = 300;
/** Requests that the page lists. */
const MOST_REQUESTS = 300;
/** Pause before the page asks again, in ms. */
const AGAIN_MS = 1_000;

const NOTHING: Live = {
  tick: 0,
  state: undefined,
  landed: new Map(),
  samples: [],
  requests: [],
  problem: 'connecting',
  needsKey: false,
};

const pairOf = ({ from, to }: LiveBody['hand_overs'][number]) => `${from} ${to}`;

/** @param isFirst whether the stream has just begun: it then tells all that the gateway still has. */
function withEvent(before: Live, state: LiveBody, isFirst: boolean, atMs: number): Live {
  const counted = new Map(before.state?.hand_overs.map((each) => [pairOf(each), each.done]));
  // After a pause, or for a gateway that was started anew, nobody knows what has just moved.
  const landed = new Map(
    state.hand_overs.map((each) => [pairOf(each), isFirst ? 0 : each.done - (counted.get(pairOf(each)) ?? 0)]),
  );
  const sum = (values: Iterable<number>) => [...values].reduce((total, value) => total + value, 0);
  const ttfts = state.requests.flatMap(({ timeline: { first_token: first } }) => (first === undefined ? [] : [first]));
  const sample: Sample = {
    at: atMs / 1000,
    waiting: state.queue.prompts,
    running: sum(Object.values(state.running)),
    busySlots: sum(state.workers.filter(({ role }) => role === 'decode').map((each) => each.slots - each.free_slots)),
    ttftMs: isFirst ? null : (median(ttfts) ?? null),
    handedOver: sum(landed.values()),
  };
  const newest = state.requests.toReversed();
  return {
    tick: before.tick + 1,
    state,
    landed,
    samples: [...before.samples, sample].slice(-SAMPLES),
    requests: (isFirst ? newest : [...newest, ...before.requests]).slice(0, MOST_REQUESTS),
    problem: undefined,
    needsKey: false,
  };
}

/** Follows the stream as long as the page is there. @param attempt changes when there is another key. */
export function useLive(attempt: number): Live {
  const [live, setLive] = useState(NOTHING);
  useEffect(() => {
    const gone = new AbortController();
    setLive(NOTHING); // what another key has shown is not for this one
    const follow = async () => {
      while (!gone.signal.aborted) {
        let isFirst = true;
        const problem = await followLive(gone.signal, (state) => {
          const first = isFirst;
          isFirst = false;
          setLive((before) => withEvent(before, state, first, Date.now()));
        }).then(
          () => undefined,
          (error: unknown) => error,
        );
        if (gone.signal.aborted) return;
        if (problem instanceof Refusal && problem.needsKey) {
          setLive({ ...NOTHING, needsKey: true, problem: problem.message });
          return;
        }
        const words = problem instanceof Error ? `no connection: ${problem.message}` : 'connecting again';
        setLive((before) => ({ ...before, problem: words }));
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      }
    };
    void follow();
    return () => gone.abort();
  }, [attempt]);
  return live;
}
