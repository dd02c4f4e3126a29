/** The rows of the bench of training, and what becomes of them in its report. */
import { describe, expect, test } from 'vitest';
import { cellsOf } from '../../../bench/training/measure.ts';
import { TRAINING } from '../../../bench/training/report.ts';
import type { MeasuredTraining } from '../../../bench/training/result.ts';

const cell = (changes: Partial<MeasuredTraining>): MeasuredTraining => ({
  shape: 'tiny-coder',
  frozen: 'fp32',
  prompt: 510,
  loadSeconds: 2,
  seconds: [0.25, 0.5, 4],
  cpuSeconds: [0.8, 0.6, 0.7],
  peakBytes: 300 * 2 ** 20,
  anonymousBytes: undefined,
  ...changes,
});

describe('bench training', () => {
  test('each shape is measured with each length and each format, the shorter prompts first', () => {
    const cells = cellsOf({
      shape: ['tiny-coder', 'qwen2.5-coder-0.5b'],
      frozen: ['fp32', 'int8'],
      prompt: [510, 2000],
    });
    expect(cells).toHaveLength(8);
    expect(cells[0]).toEqual({ shape: 'tiny-coder', frozen: 'fp32', prompt: 510 });
    expect(cells[1]).toEqual({ shape: 'tiny-coder', frozen: 'int8', prompt: 510 });
    expect(cells.at(-1)).toEqual({ shape: 'qwen2.5-coder-0.5b', frozen: 'int8', prompt: 2000 });
  });

  test('the report has medians, and CPU time relative to the row in 32-bit floats of the same shape and prompt', () => {
    const cells = [cell({}), cell({ frozen: 'w8a8', cpuSeconds: [0.35] }), cell({ frozen: 'int8', prompt: 2000 })];
    const left = [{ shape: 'qwen2.5-coder-0.5b', frozen: 'fp32' as const, prompt: 510 }];
    const { markdown } = TRAINING.report({ result: { cells, left } });
    expect(markdown).toContain('| tiny-coder | fp32 | 510 | 2.00 | 0.70 | 1.00 × | 300 | — | 2.00 |');
    expect(markdown).toContain('| tiny-coder | w8a8 | 510 | 2.00 | 0.35 | 0.50 × |');
    expect(markdown).toContain('| tiny-coder | int8 | 2000 | 2.00 | 0.70 | — |');
    expect(markdown).toContain('too short for: qwen2.5-coder-0.5b, fp32, prompt of 510.');
    expect(TRAINING.headline({ cells, left })).toBe(
      'tiny-coder, fp32, prompt of 510: 2.00 samples/s; tiny-coder, w8a8, prompt of 510: 2.00 samples/s',
    );
  });
});
