import { expect, test } from 'vitest';
import { leftOutReporter } from '../../../services/gateway/context/left-out-rows.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';

const counted = async (reason: string) =>
  (await metrics.storeRowsLeftOut.get()).values.find(({ labels }) => labels.reason === reason)?.value ?? 0;

test('each row that is left out is counted every time, and logged once, by its repository and chunk', async () => {
  const lines: object[] = [];
  const report = leftOutReporter({ warn: (fields: object) => void lines.push(fields) });
  const before = await counted('damaged');
  for (const id of ['a', 'b', 'a', 'a']) report('acme:shop', { id, reason: 'damaged', why: `chunk ${id} is bad` });
  report('acme:shop', { id: 'c', reason: 'later', why: 'no bytes left' });
  expect(lines).toEqual(
    ['a', 'b'].map((id) => ({ repo: 'acme:shop', chunk: id, reason: 'damaged', why: `chunk ${id} is bad` })),
  );
  expect(await counted('damaged')).toBe(before + 4);
});

test('of ten thousand rows that were logged a thousand are remembered', () => {
  let lines = 0;
  const report = leftOutReporter({ warn: () => void lines++ });
  const say = (i: number) => report('shop', { id: `${i}`, reason: 'damaged', why: 'bad' });
  for (let i = 0; i < 10_240; i++) say(i);
  for (let i = 0; i < 10_240; i++) say(10_239 - i);
  expect(lines).toBe(2 * 10_240 - 1_024);
});
