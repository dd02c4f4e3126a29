import { describe, expect, it } from 'vitest';
import type { ClientRecord } from '../../../bench/measure/latency.ts';
import type { Pair } from '../../../bench/tables/measure.ts';
import { PAPER_MODELS } from '../../../bench/tables/paper.ts';
import { TABLES } from '../../../bench/tables/report.ts';

describe('the report of the tables', () => {
  const record = (ttft: number, tokens: number): ClientRecord => ({
    index: 0,
    intendedMs: 0,
    sentMs: 0,
    chunksMs: Array.from({ length: tokens }, (_, i) => ttft + 5 * i),
    endedMs: ttft + 5 * tokens,
    promptTokens: 1,
    softTokens: 0,
    cachedTokens: 0,
    outputTokens: tokens,
    outcome: 'ok',
  });
  const pairs: Pair[] = [0, 1, 2, 3, 4, 5].map((round) => ({
    model: PAPER_MODELS[0],
    mode: 'disaggregated',
    regime: 'line',
    length: 2,
    round,
    text: record(1000, 50),
    soft: record(600 + round, 50),
  }));

  it("the report shows our figures beside the paper's, and says which rows were not run", () => {
    const { markdown } = TABLES.report({ result: { pairs } });
    expect(markdown).toContain('**1 of 1** rows');
    expect(TABLES.headline({ pairs })).toBe(
      'soft tokens save 40 % to 40 % of TTFT, at least the share of tokens cut in 1 of 1 rows',
    );
    const [short, row] = markdown.split('\n').filter((line) => /^\| 1500 → 1010.*1\.5b.*1000/.test(line));
    expect(short).toBe(
      '| 1500 → 1010 | qwen2.5-coder-1.5b | 1000 → 603 ↓ 40 % | 112 → 69.7 ↓ 38 % | not run | 58.9 → 50.3 ↓ 15 % |',
    );
    expect(row).toContain('1000 → 603 | ↓ 40 % | 40 % to 40 % | yes | 112 → 69.7 ↓ 38 % | 5.00 → 5.00 ±0 % | 23.2');
    expect(markdown.match(/not run/g)).toHaveLength(4 * 9 - 1 + 2 * 9 - 1);
  });
});
