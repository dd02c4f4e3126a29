import { describe, expect, it } from 'vitest';
import { assertOnCard, parseNvidia } from '../../../bench/gpu/card.ts';
import { GPU_COMMAND, type GpuOptions, PART_NAMES } from '../../../bench/gpu/command.ts';
import { endsOf, sizesOf, wantedBundles } from '../../../bench/gpu/measure.ts';
import { compareRows, equalTokens } from '../../../bench/gpu/parts/correct.ts';
import { GPU } from '../../../bench/gpu/report.ts';
import { defaultsOf, RUN_OPTIONS } from '../../../bench/options.ts';

describe('the budget of bench gpu', () => {
  it('the parts end one after the other, and the last one with the budget, whichever parts run', () => {
    for (const parts of [PART_NAMES, ['speed', 'memory'] as const]) {
      const ends = endsOf(parts, 8);
      expect(ends).toEqual(ends.toSorted((a, b) => a - b));
      expect(ends.at(-1)).toBeCloseTo(480);
    }
  });

  it('only the bundles that the chosen parts need are made', () => {
    const options = { model: ['a', 'b'], precision: GPU_COMMAND.options.precision.parse('fp16,int8') };
    expect(wantedBundles({ ...options, parts: ['device'] })).toEqual([{ model: 'tiny', precision: 'int4-fp16' }]);
    expect(wantedBundles({ ...options, parts: ['memory'] })).toEqual([{ model: 'a', precision: 'fp16' }]);
    expect(wantedBundles({ ...options, parts: ['tables'] }).map(({ model }) => model)).toEqual(['a', 'b']);
    expect(wantedBundles({ ...options, parts: ['speed'] })).toHaveLength(4);
  });

  it('a precision that there is not is refused before anything is measured', () => {
    expect(() => GPU_COMMAND.options.precision.parse('int4-fp16,int5')).toThrow(
      /int5 must be one of fp32, .*int4-fp16/,
    );
  });

  it('sizes are small where only the model that ships is measured, except for what the user gave', () => {
    const options: GpuOptions = { ...defaultsOf(GPU_COMMAND.options), ...defaultsOf(RUN_OPTIONS), command: '' };
    expect(sizesOf(options, {})).toMatchObject({ prompt: [128, 512, 2010], rows: [1, 4, 16, 32], context: 512 });
    const small = sizesOf({ ...options, model: ['tiny'], rows: [7] }, { rows: [7] });
    expect(small.rows).toEqual([7]);
    expect(Math.max(...small.prompt, small.context)).toBeLessThan(128);
  });
});

describe('the comparison with the CPU', () => {
  const rows = (...values: number[]) => ({ vocab: 2, rows: Float32Array.from(values) });

  it('equal logits have no divergence, and a logit that is not a number is infinitely far', () => {
    expect(compareRows(rows(1, 2, 3, 4), rows(1, 2, 3, 4))).toEqual({ rows: 2, kl: 0, furthest: 0, equal: 2 });
    expect(compareRows(rows(1, 2), rows(1, Number.NaN)).furthest).toBe(Number.POSITIVE_INFINITY);
    expect(compareRows(rows(1, 2, 3, 4), rows(1, Number.NaN, 3, 4)).furthest).toBe(Number.POSITIVE_INFINITY);
  });

  it('a likeliest token that differs is counted, and the divergence is that of the distributions', () => {
    const { kl, furthest, equal } = compareRows(rows(0, Math.log(3)), rows(Math.log(3), 0));
    expect(kl).toBeCloseTo(0.25 * Math.log(1 / 3) + 0.75 * Math.log(3));
    expect([furthest, equal]).toEqual([expect.closeTo(Math.log(3)), 0]);
  });

  it('tokens are equal up to the first one that differs', () => {
    expect(equalTokens([1, 2, 3], [1, 2, 3])).toBe(3);
    expect(equalTokens([1, 2, 3], [1, 5, 3])).toBe(1);
    expect(equalTokens([1, 2, 3], [1])).toBe(1);
  });
});

describe('the card beside the figures', () => {
  const card = (used: number) => ({ name: 'NVIDIA H200', driver: '570', memory: 2 ** 37, used });

  it('an engine computes on the card whose used memory rises while it is open', () => {
    expect(assertOnCard(card(4 * 2 ** 20), card(500 * 2 ** 20), 'WebGPU')).toBe(true);
  });

  it('a device that leaves the card’s memory as it was is refused by name: it is another one', () => {
    expect(() => assertOnCard(card(4 * 2 ** 20), card(4 * 2 ** 20), 'WebGPU on llvmpipe')).toThrow(
      /^WebGPU on llvmpipe does not compute on NVIDIA H200: 4194304 bytes .*llavacode devices/,
    );
  });

  it('nothing is said where the tools do not tell the used memory', () => {
    expect(assertOnCard(card(Number.NaN), card(Number.NaN), 'WebGPU')).toBeUndefined();
    expect(assertOnCard(card(0), undefined, 'WebGPU')).toBeUndefined();
  });
});

it('a card is read from the line that nvidia-smi prints, and not from its error messages', () => {
  expect(parseNvidia('NVIDIA H200, 570.86.15, 143771, 4\nNVIDIA H200, 570.86.15, 143771, 0\n')).toEqual({
    name: 'NVIDIA H200',
    driver: '570.86.15',
    memory: 143771 * 2 ** 20,
    used: 4 * 2 ** 20,
  });
  expect(parseNvidia('No devices were found')).toBeUndefined();
});

it('the report shows small divergences, bounds with their share, and why a part was cut or failed', () => {
  const figure = { subject: 'm', unit: 'ms' };
  const { markdown } = GPU.report({
    result: {
      provider: 'webgpu',
      parts: [
        { part: 'correct', status: 'done', seconds: 1, figures: [{ ...figure, what: 'KL', value: 4e-9 }] },
        {
          part: 'speed',
          status: 'cut',
          reason: 'over',
          seconds: 1,
          figures: [{ ...figure, what: 'a', value: 4, bound: 1 }],
        },
        { part: 'memory', status: 'failed', reason: 'no device', seconds: 1, figures: [] },
      ],
    },
  });
  expect(markdown).toContain('| m | KL | 4.0e-9 | ms |');
  expect(markdown).toContain('| m | a | 4.00 | ms | 1.00 | 25 % |');
  expect(markdown).toContain('**cut short**: over');
  expect(markdown).toContain('**failed**: no device');
});
