/** What `bench speculation` predicts, and how its figures are put into tables. */
import { describe, expect, it } from 'vitest';
import { predictionOf } from '../../../bench/speculation/measure.ts';
import { SPECULATION } from '../../../bench/speculation/report.ts';

const tokenizer = { decode: (ids: Iterable<number>) => Array.from(ids).join(' ') };
const output = Array.from({ length: 40 }, (_, i) => i);
const other = output.map((id) => 1000 + id);

describe('what is predicted', () => {
  it('a completion predicts nothing, and an exact prediction is the output', () => {
    expect(predictionOf('completion', output, other, tokenizer)).toBeUndefined();
    expect(predictionOf('exact', output, other, tokenizer)).toBe(output.join(' '));
    expect(predictionOf('wrong', output, other, tokenizer)).toBe(other.join(' '));
  });

  it('an edit replaces two of twenty parts', () => {
    const edited = predictionOf('edit', output, other, tokenizer)!.split(' ').map(Number);
    expect(edited.filter((id) => id >= 1000)).toEqual([1012, 1013, 1026, 1027]);
    expect(edited.filter((id, i) => id === i).length).toBe(36);
  });
});

it('the report has speeds, equality and acceptance', () => {
  const pair = (speculativeTpotMs: number, same: boolean) => ({
    temperature: 0,
    plainTpotMs: 20,
    speculativeTpotMs,
    same,
  });
  const traces = [
    {
      trace: 'edit' as const,
      pairs: [pair(10, true), pair(8, true), pair(20, false)],
      sources: [{ source: 'prediction' as const, runs: 9, proposed: 50, accepted: 40 }],
    },
  ];
  const result = { model: 'm', traces };
  const { markdown } = SPECULATION.report({ result } as Parameters<typeof SPECULATION.report>[0]);
  expect(markdown).toContain('| edit | 20.0 | 10.0 | 2.00 |');
  expect(markdown).toContain('2 of 3');
  expect(markdown).toContain('| edit | prediction | 9 | 50 | 80 % |');
  expect(SPECULATION.headline(result)).toBe('edit 2.00 ×');
});
