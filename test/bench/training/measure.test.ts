/** The rows of the bench of training, and what becomes of them in its report. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { cellsOf } from '../../../bench/training/measure.ts';
import { PytorchPasses } from '../../../bench/training/pytorch.ts';
import { TRAINING } from '../../../bench/training/report.ts';
import type { MeasuredTraining } from '../../../bench/training/result.ts';
import { publishedSpec } from '../../../services/lib/model/checkpoint/synth.ts';
import { temporaryFolder } from '../../support/models.ts';

const cell = (changes: object): MeasuredTraining => ({
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
      losses: ['ce'],
      pytorch: undefined,
    });
    expect(cells).toHaveLength(8);
    expect(cells[0]).toEqual({ shape: 'tiny-coder', frozen: 'fp32', prompt: 510 });
    expect(cells[1]).toEqual({ shape: 'tiny-coder', frozen: 'int8', prompt: 510 });
    expect(cells.at(-1)).toEqual({ shape: 'qwen2.5-coder-0.5b', frozen: 'int8', prompt: 2000 });
    const beside = cellsOf({
      shape: ['tiny-coder'],
      frozen: ['fp32'],
      prompt: [9],
      losses: ['ce', 'joint'],
      pytorch: 'python3',
    });
    expect(beside.map(({ frozen, losses }) => [frozen, losses])).toEqual([
      ['fp32', undefined],
      ['fp32', 'joint'],
      ['pytorch', undefined],
    ]);
  });

  test('the report has medians with their noise, and CPU time relative to the row in 32-bit floats', () => {
    const cells = [
      cell({}),
      cell({ frozen: 'w8a8', seconds: [0.5], cpuSeconds: [0.35] }),
      cell({ frozen: 'int8', prompt: 2000 }),
    ];
    const slow = cell({ prompt: 4000, seconds: [194] });
    expect(TRAINING.headline({ cells: [slow], left: [] })).toBe('tiny-coder, fp32, prompt of 4000: 0.0052 samples/s');
    const left = [{ shape: 'qwen2.5-coder-0.5b', frozen: 'fp32', prompt: 510 }] as const;
    const { markdown } = TRAINING.report({ result: { cells, left } });
    expect(markdown).toContain(
      '| tiny-coder | fp32 | 510 | 2.00 | 0.70 | 0.60 to 0.80 | 1.20 | 1.00 × | 300 | — | 2.00 |',
    );
    expect(markdown).toContain('| tiny-coder | w8a8 | 510 | 2.00 | 0.35 | 0.35 to 0.35 | 0.70 | 0.50 × |');
    expect(markdown).toContain('| tiny-coder | int8 | 2000 | 2.00 | 0.70 | 0.60 to 0.80 | 1.20 | — |');
    expect(markdown).toContain('too short for: qwen2.5-coder-0.5b, fp32, prompt of 510.');
    expect(TRAINING.headline({ cells, left })).toBe(
      'tiny-coder, fp32, prompt of 510: 2.00 samples/s; tiny-coder, w8a8, prompt of 510: 2.00 samples/s',
    );
  });

  test('a joint pass is compared with the sum of its two losses apart', () => {
    const cells = [
      cell({ seconds: [0.5], cpuSeconds: [1] }),
      cell({ losses: 'reinforce', seconds: [0.5], cpuSeconds: [1.5] }),
      cell({ losses: 'joint', seconds: [0.5], cpuSeconds: [1.25] }),
      cell({ losses: 'joint', prompt: 2000 }),
    ];
    const { markdown } = TRAINING.report({ result: { cells, left: [] } });
    expect(markdown).toContain('| 510 | ce | 2.00 | 1.00 | 1.00 to 1.00 | 2.00 | 1.00 × | — |');
    expect(markdown).toContain('| 510 | joint | 2.00 | 1.25 | 1.25 to 1.25 | 2.50 | 1.00 × | 0.50 × |');
    expect(markdown).toContain('| 2000 | joint | 2.00 | 0.70 | 0.60 to 0.80 | 1.20 | 1.00 × | — |');
  });

  test('beside PyTorch the report has the ratio to it, and its version', () => {
    const cells = [cell({}), cell({ frozen: 'pytorch', cpuSeconds: [1.4], version: '2.9.0' })];
    const { markdown } = TRAINING.report({ result: { cells, left: [] } });
    expect(markdown).toContain('| 0.60 to 0.80 | 1.20 | 1.00 × | 0.50 × | 300 |');
    expect(markdown).toContain('| tiny-coder | pytorch | 510 | 2.00 | 1.40 |');
    expect(markdown).toContain('PyTorch is version 2.9.0.');
  });
});

describe('the passes of PyTorch', async () => {
  const dir = await temporaryFolder();
  /** A program in the place of Python, in JavaScript, that gets the words of a Python. */
  const program = async (name: string, text: string) => {
    const path = join(dir, name);
    await writeFile(path, `#!${process.execPath}\n${text}`, { mode: 0o755 });
    return path;
  };
  const spec = publishedSpec('qwen2.5-coder-0.5b');
  const sizes = { prompt: 510, target: 40, soft: 10, threads: 2 };

  test('it is told the shape and the sizes, and each line that it is sent is a pass', async () => {
    const python = await program(
      'answers',
      `const [script, model, ...sizes] = process.argv.slice(2);
      const fields = JSON.parse(model);
      const fits = /pytorch-step.py$/.test(script) && sizes.join() === '510,40,10,2' && fields.model_type === 'qwen2';
      if (!fits || fields.hidden_size !== 896 || fields.tie_word_embeddings !== true) throw new Error('other words');
      const tell = (more) => console.log(JSON.stringify({ peakBytes: 5, version: '2.9.0', ...more }));
      tell();
      let passes = 0;
      process.stdin.on('data', () => tell({ seconds: ++passes, cpuSeconds: 2 * passes }));`,
    );
    const passes = await PytorchPasses.open(python, spec, sizes);
    expect(await passes.pass()).toEqual({ seconds: 1, cpuSeconds: 2, peakBytes: 5, version: '2.9.0' });
    expect(await passes.pass()).toMatchObject({ seconds: 2 });
    await passes.stop();
    await passes.stop();
  });

  test('a Python that is not there, lacks a package or writes something else is refused with what it said', async () => {
    const refused = (why: RegExp) => ({ code: 'config_invalid', message: expect.stringMatching(why) });
    const open = (python: string) => PytorchPasses.open(python, spec, sizes);
    await expect(open(join(dir, 'none'))).rejects.toMatchObject(refused(/^--pytorch .*none: .*ENOENT: name a Python/));
    const lacks = await program('lacks', `console.error("No module named 'torch'"); process.exit(1);`);
    await expect(open(lacks)).rejects.toMatchObject(
      refused(/No module named 'torch': name a Python that has .* torch/),
    );
    const other = await program('other', `console.log('hello'); setInterval(() => {}, 1000);`);
    await expect(open(other)).rejects.toMatchObject(refused(/it wrote "hello"/));
  });
});
