import { expect, test } from 'vitest';
import { Lingering } from '../../../services/gateway/completion/lingering.ts';
import { TokenStream } from '../../../services/gateway/completion/token-stream.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';

const superseded = new ServingError('superseded', 'a newer request came');

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
  return { lingering, stream: new TokenStream(start), working: () => working };
}

test('a stream that is left again soon after it was found goes on once, and nothing of it remains', async () => {
  const { lingering, stream, working } = made({ lingerMs: 60_000 });
  expect([lingering.goesOn(stream, superseded), lingering.goesOn(stream, superseded)]).toEqual([true, true]);
  expect([working(), (await metrics.lingering.get()).values[0]?.value]).toEqual([1, 1]);
  lingering.end(stream);
  expect([working(), stream.signal.aborted, (await metrics.lingering.get()).values[0]?.value]).toEqual([0, true, 0]);
});

test('a stream that is left again, and not for its next request, does not go on', () => {
  const { lingering, stream, working } = made({ lingerMs: 60_000 });
  expect(lingering.goesOn(stream, superseded)).toBe(true);
  expect(lingering.goesOn(stream, new ServingError('deadline_exceeded', 'late'))).toBe(false);
  expect(working()).toBe(0);
});

test('where prompts wait, no stream goes on', () => {
  const { lingering, stream, working } = made({ lingerMs: 60_000, busy: true });
  expect([lingering.goesOn(stream, superseded), working()]).toEqual([false, 0]);
});
