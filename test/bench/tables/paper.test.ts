import { describe, expect, it } from 'vitest';
import { percent } from '../../../bench/report/markdown.ts';
import { LENGTHS, PAPER_MODELS, PAPER_TABLES, paperRow, tokensCut } from '../../../bench/tables/paper.ts';

describe("the paper's tables", () => {
  it('every table of the paper has a row for each of three lengths and three models', () => {
    for (const { rows } of PAPER_TABLES) expect(rows.map((row) => row.length)).toEqual([3, 3, 3]);
    expect(LENGTHS.map((lengths) => percent(tokensCut(lengths), 1))).toEqual(['19.6 %', '24.5 %', '32.7 %']);
  });

  it('a row of the paper is found by its model, and a model that the paper lacks has none', () => {
    const [eight, nine] = PAPER_TABLES;
    expect(paperRow(eight!, 2, PAPER_MODELS[0])).toEqual({ ttft: [112.2, 69.7], tpot: [23.2, 23.5] });
    expect(paperRow(nine!, 1, PAPER_MODELS[1])?.ttft).toEqual([179.0, 134.0]);
    expect(paperRow(nine!, 1, 'qwen2.5-coder-0.5b')).toBeUndefined();
  });
});
