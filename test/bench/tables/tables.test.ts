import { describe, expect, it } from 'vitest';
import type { RequestRecord } from '../../../bench/measure/latency.ts';
import type { Artifact } from '../../../bench/report/artifact.ts';
import { change, figure, percent, table } from '../../../bench/report/markdown.ts';
import { type Pair, type TablesResult, verdict } from '../../../bench/tables/measure.ts';
import { LENGTHS, PAPER_MODELS, PAPER_TABLES, paperRow, tokensCut } from '../../../bench/tables/paper.ts';
import { reportTables } from '../../../bench/tables/report.ts';

describe("the paper's tables", () => {
  it('are whole: three lengths by three models', () => {
    for (const { rows } of PAPER_TABLES) expect(rows.map((row) => row.length)).toEqual([3, 3, 3]);
    expect(LENGTHS.map((lengths) => percent(tokensCut(lengths), 1))).toEqual(['19.6 %', '24.5 %', '32.7 %']);
  });

  it('find a row by model', () => {
    const [eight, nine] = PAPER_TABLES;
    expect(paperRow(eight!, 2, PAPER_MODELS[0])).toEqual({ ttft: [112.2, 69.7], tpot: [23.2, 23.5] });
    expect(paperRow(nine!, 1, PAPER_MODELS[1])?.ttft).toEqual([179.0, 134.0]);
    expect(paperRow(nine!, 1, 'qwen2.5-coder-0.5b')).toBeUndefined();
  });
});

describe('verdict', () => {
  it.each([
    [{ low: 0.34, high: 0.4, coverage: 0.95 }, 0.36, 'yes'],
    [{ low: 0.2, high: 0.3, coverage: 0.95 }, 0.25, 'no'],
    [{ low: 0.3, high: 0.4, coverage: 0.95 }, 0.35, 'yes (uncertain)'],
    [{ low: 0.3, high: 0.4, coverage: 0.95 }, 0.31, 'no (uncertain)'],
    [{ low: 0.34, high: 0.4, coverage: 0.75 }, 0.36, 'yes (uncertain)'],
  ])('%j around %d of 33 %%: %s', (interval, middle, said) => expect(verdict(interval, middle, 2)).toBe(said));
});

describe('reportTables', () => {
  const record = (ttft: number, tokens: number): RequestRecord => ({
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
    ...{ model: PAPER_MODELS[0], mode: 'disaggregated', regime: 'line', length: 2, round },
    text: record(1000, 50),
    soft: record(600 + round, 50),
  }));

  it("prints ours beside the paper's, and what was not run", () => {
    const artifact = { result: { pairs } } as unknown as Artifact<TablesResult>;
    const { markdown } = reportTables(artifact);
    expect(markdown).toContain('**1 of 1** rows');
    const [short, row] = markdown.split('\n').filter((line) => /^\| 1500 → 1010.*1\.5b.*1000/.test(line));
    expect(short).toBe(
      '| 1500 → 1010 | qwen2.5-coder-1.5b | 1000 → 603 ↓ 40 % | 112 → 69.7 ↓ 38 % | not run | 58.9 → 50.3 ↓ 15 % |',
    );
    expect(row).toContain('1000 → 603 | ↓ 40 % | 40 % … 40 % | yes | 112 → 69.7 ↓ 38 % | 5.00 → 5.00 ±0 % | 23.2');
    expect(markdown.match(/not run/g)).toHaveLength(4 * 9 - 1 + 2 * 9 - 1);
  });
});

describe('markdown', () => {
  it('writes figures with three digits, and dashes for what is unknown', () => {
    expect([1234.5, 45.67, 1.234, 0, undefined, Number.NaN].map(figure)).toEqual([
      '1235',
      '45.7',
      '1.23',
      '0',
      '—',
      '—',
    ]);
    expect([0.214, -0.05, 0.001].map(change)).toEqual(['↓ 21 %', '↑ 5 %', '±0 %']);
  });

  it('aligns columns and escapes what would end a cell', () => {
    expect(table(['a', 'b'], [['x|y', '1']])).toBe('| a | b |\n| :-- | --: |\n| x\\|y | 1 |');
  });
});
