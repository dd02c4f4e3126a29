import { PassThrough } from 'node:stream';
import { setImmediate as nextRound } from 'node:timers/promises';
import { expect, onTestFinished, test, vi } from 'vitest';
import { Outlet } from '../../../services/gateway/http/outlet.ts';

test('thirty long answers at once are made in one turn per round of the event loop together', async () => {
  await nextRound();
  await nextRound();
  vi.useFakeTimers({ toFake: ['performance'] }); // the clock goes on only with a piece
  onTestFinished(() => void vi.useRealTimers());
  let made = 0;
  function* pieces(): Generator<string> {
    for (let i = 0; i < 4; i++) {
      vi.advanceTimersByTime(6);
      made++;
      yield `${i}`;
    }
  }
  const answers = Array.from({ length: 30 }, () => new PassThrough());
  let done = false;
  const sent = Promise.all(
    answers.map((answer) => new Outlet(answer as never, new AbortController().signal, 1_000).sendPieces(pieces())),
  ).finally(() => (done = true));
  const rounds: number[] = [];
  while (!done) {
    const before = made;
    await nextRound();
    rounds.push(made - before);
  }
  await sent;
  expect(made).toBe(120);
  expect(Math.max(...rounds)).toBe(1);
  expect(answers.map((answer) => String(answer.read()))).toEqual(Array(30).fill('0123'));
});
