import { expect, test } from 'vitest';
import { Lingering } from '../../../services/gateway/completion/lingering.ts';
import { type StreamPart, TokenStream } from '../../../services/gateway/completion/token-stream.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { settle } from '../../support/fake-engine.ts';

const superseded = new ServingError('superseded', 'a newer request came');

/** The token with which an answer ends. */
const ENDS = 7;

function made(options: { lingerMs: number; busy?: boolean }) {
  let working = 0;
  const track = () => {
    working++;
    const { signal } = new AbortController();
    return { signal, abort: () => {}, release: () => void working-- };
  };
  const lingering = new Lingering({ lingerMs: options.lingerMs, isBusy: () => options.busy ?? false, track });
  const prompt = { ids: Int32Array.of(1), soft: { positions: new Int32Array(0), vectors: new Float32Array(0) } };
  const start = { prompt, maxTokens: 9, stopIds: [], tokens: [], onUnread: () => true };
  const stream = new TokenStream(start);
  const answer = {
    from: 0,
    rest:
      () =>
      async ({ tokens }: StreamPart) =>
        tokens.some(({ id }) => id === ENDS),
  };
  const goesOn = (reason: unknown) => lingering.goesOn(stream, reason, answer);
  return { lingering, goesOn, stream, working: () => working };
}

test('a stream that is left again soon after it was found goes on once, and nothing of it remains', async () => {
  const { lingering, goesOn, stream, working } = made({ lingerMs: 60_000 });
  expect([goesOn(superseded), goesOn(superseded)]).toEqual([true, true]);
  expect([working(), (await metrics.lingering.get()).values[0]?.value]).toEqual([1, 1]);
  lingering.end(stream);
  expect([working(), stream.signal.aborted, (await metrics.lingering.get()).values[0]?.value]).toEqual([0, true, 0]);
});

test('a stream that is left again, and not for its next request, does not go on', () => {
  const { goesOn, working } = made({ lingerMs: 60_000 });
  expect(goesOn(superseded)).toBe(true);
  expect(goesOn(new ServingError('deadline_exceeded', 'late'))).toBe(false);
  expect(working()).toBe(0);
});

test('where prompts wait, no stream goes on', () => {
  const { goesOn, working } = made({ lingerMs: 60_000, busy: true });
  expect([goesOn(superseded), working()]).toEqual([false, 0]);
});

test('a stream ends where the answer of its last reader would end, and not before', async () => {
  const { goesOn, stream, working } = made({ lingerMs: 60_000 });
  stream.push([{ id: 1 }], undefined);
  expect(goesOn(superseded)).toBe(true);
  stream.push([{ id: 2 }], undefined);
  await settle();
  expect([working(), stream.signal.aborted]).toEqual([1, false]);
  stream.push([{ id: ENDS }, { id: 3 }], undefined);
  await settle();
  expect([working(), stream.signal.aborted]).toEqual([0, true]);
});

test('a stream that is read again goes on beyond the answer that was left', async () => {
  const { goesOn, stream, working } = made({ lingerMs: 60_000 });
  expect(goesOn(superseded)).toBe(true);
  const rest = () => async () => false;
  const reader = stream.read(0, { signal: new AbortController().signal, isOwner: false, answer: { from: 0, rest } });
  stream.push([{ id: ENDS }], undefined);
  expect((await reader.next()).value).toMatchObject({ tokens: [{ id: ENDS }] });
  await settle();
  expect([working(), stream.signal.aborted]).toEqual([0, false]);
});
