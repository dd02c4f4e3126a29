import { describe, expect, it } from 'vitest';
import { parseTrace } from '../../../bench/measure/trace.ts';

describe('parseTrace', () => {
  it("a trace in Mooncake's format is read, sorted, and starts at 0", () => {
    const text = [
      '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}',
      '',
      '{"timestamp": 24482, "input_length": 7, "output_length": 26}',
    ].join('\n');
    expect(parseTrace(text)).toEqual([
      { atMs: 0, inputTokens: 7, outputTokens: 26, blocks: [] },
      { atMs: 3000, inputTokens: 6955, outputTokens: 52, blocks: [46, 47] },
    ]);
  });

  it.each([
    ['{"timestamp": 1', /line 2 of the trace is not valid JSON/],
    ['{"timestamp": 1, "input_length": 0, "output_length": 5}', /line 2 .*input_length/],
    ['{"timestamp": -1, "input_length": 1, "output_length": 5}', /line 2 .*timestamp/],
  ])('the error names the line at fault: %s', (line, message) => {
    const good = '{"timestamp": 0, "input_length": 1, "output_length": 1}';
    expect(() => parseTrace(`${good}\n${line}`)).toThrow(message);
  });
});
