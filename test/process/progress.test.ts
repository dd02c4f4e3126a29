/** Progress where nobody watches: plain lines. */
import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { startProgress } from '../../services/lib/process/progress.ts';

function plain(linesEveryMs?: number) {
  const stream = new PassThrough();
  let nowMs = 0;
  const now = () => nowMs;
  const progress = startProgress(
    'training',
    linesEveryMs === undefined ? { stream, now } : { stream, now, linesEveryMs },
  );
  return {
    progress,
    after: (ms: number, text: string) => {
      nowMs += ms;
      progress.update(text);
    },
    lines: () =>
      String(stream.read() ?? '')
        .split('\n')
        .slice(0, -1),
  };
}

test('a changed text is not written, and names what failed', () => {
  const { progress, after, lines } = plain();
  after(1e9, 'step 1');
  progress.fail();
  expect(lines()).toEqual(['- training', '✖ step 1']);
});

test('where a command asks for it, a changed text is a line when the latest one is old enough', () => {
  const { progress, after, lines } = plain(1000);
  for (const [ms, text] of [
    [400, 'step 1'],
    [599, 'step 2'],
    [1, 'step 3'],
    [999, 'step 4'],
  ] as const) {
    after(ms, text);
  }
  progress.warn('careful');
  after(999, 'step 5');
  after(1, 'step 6');
  expect(lines()).toEqual(['- training', '- step 3', '⚠ careful', '- step 6']);
});
