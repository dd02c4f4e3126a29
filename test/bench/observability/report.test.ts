import { expect, test } from 'vitest';
import type { ObservabilityResult } from '../../../bench/observability/measure.ts';
import { OBSERVABILITY } from '../../../bench/observability/report.ts';

test("beside what traces and scrapes cost of TTFT stands what they cost of the gateway's CPU time", () => {
  const pair = { onTtftMs: 99, offTtftMs: 100, onTpotMs: undefined, offTpotMs: undefined };
  const result: ObservabilityResult = {
    model: 'tiny-coder',
    promptTokens: 500,
    outputTokens: 16,
    pairs: Array.from({ length: 10 }, () => pair),
    cpu: [
      { role: 'gateway', onMs: 260, offMs: 200 },
      { role: 'prefill', onMs: 4000, offMs: 4000 },
    ],
    spansPerRequest: 18,
    trace: [],
  };
  const cost =
    "the gateway's CPU time per request is 260 ms with them and 200 without (↑ 30 %; means of one run's requests, without an interval)";
  expect(OBSERVABILITY.headline(result)).toContain(`-1.0 % (median of pairs; interval -1.0 % to -1.0 %); ${cost}`);
  expect(OBSERVABILITY.report({ result }).markdown).toContain(`interval -1.00 % to -1.00 %); ${cost}`);
  expect(OBSERVABILITY.headline({ ...result, cpu: undefined })).not.toContain('CPU');
});
