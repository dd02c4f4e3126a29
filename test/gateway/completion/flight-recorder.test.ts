/** What the operator page is told of requests: in bounds, by their timelines, and without text. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { FlightRecorder } from '../../../services/gateway/completion/flight-recorder.ts';
import { KV_BYTES, Timeline } from '../../../services/lib/request/timeline.ts';

const HEAD = { id: 'r', route: '/v1/completions' };
const [P, D] = ['10.0.0.1:1', '10.0.0.2:2'];

/** A request that has called both workers, up to its hand-over. */
function flight(recorder: FlightRecorder, id = 'r') {
  const timeline = new Timeline();
  const flight = recorder.begin(timeline, { ...HEAD, id });
  timeline.mark('received', 1_000);
  const prefill = timeline.begin('prefill', { worker: P }, 1_002);
  const decode = timeline.begin('decode', { worker: D, source: P }, 1_003);
  return { timeline, flight, prefill, decode };
}

test('a request is kept with its waterfall, in ms since its body had come', () => {
  const recorder = new FlightRecorder();
  const { timeline, flight: first, prefill, decode } = flight(recorder);
  prefill.mark('first_token', {}, 1_010);
  prefill.end(undefined, 1_010.5);
  decode.mark('joined', { [KV_BYTES]: 4_096 }, 1_012);
  decode.end('worker_lost', 1_020);
  timeline.begin('decode', { worker: D, source: P }, 1_021); // goes on after the request's end
  first.end({ status: 200, timeline });
  expect(recorder.since(0, 10)).toEqual([
    {
      status: 200,
      timeline: { received: 0 },
      number: 1,
      request_id: 'r',
      ended_at: expect.stringMatching(/^\d{4}-.*Z$/),
      route: '/v1/completions',
      activities: [
        { name: 'prefill', worker: P, from_ms: 2, to_ms: 10.5, marks: [{ name: 'first_token', at_ms: 10 }] },
        {
          name: 'decode',
          worker: D,
          source: P,
          from_ms: 3,
          to_ms: 20,
          error: 'worker_lost',
          marks: [{ name: 'joined', at_ms: 12 }],
        },
        { name: 'decode', worker: D, source: P, from_ms: 21, marks: [] },
      ],
      activities_left_out: 0,
    },
  ]);
});

test('a hand-over flies until the sequence has joined, and is done only then', () => {
  const recorder = new FlightRecorder();
  const [first, second] = [flight(recorder), flight(recorder)];
  const only = () => recorder.handOvers;
  expect(only()).toEqual([{ from: P, to: D, flying: 2, done: 0, bytes: 0 }]);
  first.decode.mark('joined', { [KV_BYTES]: 100 });
  expect(only()).toEqual([{ from: P, to: D, flying: 1, done: 1, bytes: 100 }]);
  first.decode.end();
  second.decode.end('worker_lost'); // its KV has never come
  second.flight.end(undefined);
  expect(only()).toEqual([{ from: P, to: D, flying: 0, done: 1, bytes: 100 }]);
});

test('running requests are counted by the event that came last', () => {
  const recorder = new FlightRecorder();
  recorder.begin(new Timeline(), HEAD);
  const running = flight(recorder);
  running.timeline.mark('admitted');
  expect(recorder.phases).toEqual({ arrived: 1, admitted: 1 });
  running.flight.end(undefined); // not to be kept: a stranger's
  expect([recorder.phases, recorder.since(0, 10), recorder.last]).toEqual([{ arrived: 1 }, [], 0]);
});

test('of more requests than fit the oldest go, whatever their sizes, and a reader misses none that is kept', () => {
  const sizes = fc.array(fc.integer({ min: 0, max: 900 }), { minLength: 1, maxLength: 60 });
  fc.assert(
    fc.property(sizes, fc.integer({ min: 0, max: 60 }), fc.integer({ min: 1, max: 70 }), (all, after, most) => {
      const bound = 4_000;
      const recorder = new FlightRecorder(bound);
      for (const size of all) recorder.begin(new Timeline(), HEAD).end({ padding: 'x'.repeat(size) });
      const kept = recorder.since(0, all.length);
      const numbers = kept.map(({ number }) => number);
      expect(numbers).toEqual(Array.from(kept, (_, i) => all.length - kept.length + i + 1));
      expect(kept.reduce((sum, request) => sum + JSON.stringify(request).length, 0)).toBeLessThanOrEqual(bound);
      const given = recorder.since(after, most).map(({ number }) => number);
      expect(given).toEqual(numbers.filter((number) => number > after).slice(-most));
      expect(recorder.last).toBe(all.length);
    }),
  );
});

test('a request with very many calls keeps a few of them, and says how many are missing', () => {
  const recorder = new FlightRecorder();
  const timeline = new Timeline();
  const { end } = recorder.begin(timeline, HEAD);
  for (let i = 0; i < 1_000; i++) {
    const activity = timeline.begin('decode', { worker: D, source: P });
    for (let mark = 0; mark < 100; mark++) activity.mark('step');
    activity.end();
  }
  end({});
  const [request] = recorder.since(0, 1);
  expect(request!.activities.length + request!.activities_left_out).toBe(1_000);
  expect(JSON.stringify(request).length).toBeLessThan(32_768);
});

test('pairs of workers that come and go are forgotten, those with KV on its way are not', () => {
  const recorder = new FlightRecorder();
  const timeline = new Timeline();
  recorder.begin(timeline, HEAD);
  timeline.begin('decode', { worker: D, source: 'still flying' });
  for (let i = 0; i < 5_000; i++) timeline.begin('decode', { worker: D, source: `gone ${i}` }).end();
  expect(recorder.handOvers.length).toBeLessThanOrEqual(1_024);
  expect(recorder.handOvers[0]).toMatchObject({ from: 'still flying', flying: 1 });
});
