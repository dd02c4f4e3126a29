/** The memory of a run by arithmetic is what was measured, and a limit is kept by the cheapest means. */
import { describe, expect, test } from 'vitest';
import { GIB } from '../../../services/lib/process/memory.ts';
import { type MemoryNeed, trainingBytes, withinMemory } from '../../../training/run/memory.ts';

/** The shape of Qwen2.5-Coder-0.5B. */
const spec = {
  hidden: 896,
  layers: 24,
  heads: 14,
  kvHeads: 2,
  headDim: 64,
  intermediate: 4864,
  vocab: 151_936,
  tied: true,
};
const need = (prompt: number, changes: Partial<MemoryNeed> = {}): MemoryNeed => ({
  frozen: 'fp32',
  recompute: false,
  rows: prompt + 40,
  scored: 40,
  forwardGraphs: 0,
  slots: 0,
  ...changes,
});

describe('memory', () => {
  // Peaks of resident memory of a process that only trains, with targets of 40 tokens.
  test.each([
    [510, {}, 3.1],
    [510, { recompute: true }, 2.15],
    [510, { frozen: 'w8a8' }, 3.5],
    [2000, {}, 7.1],
    [2000, { recompute: true }, 3.2],
    [2000, { frozen: 'w8a8' }, 7.4],
  ] as const)('a prompt of %i tokens with %j takes what was measured, within 8 %%', (prompt, changes, measured) => {
    const found = trainingBytes(spec, need(prompt, changes)) / GIB;
    expect(Math.abs(found / measured - 1)).toBeLessThan(0.08);
  });

  test('less memory means fewer rollouts at a time first, then activations that are computed again', () => {
    const asked = need(2000, { forwardGraphs: 2 });
    const found = [undefined, 64, 16, 13, 12, 9, 6].map((gib) => {
      const { recompute, slots } = withinMemory(spec, asked, gib && gib * GIB);
      return [recompute, slots] as const;
    });
    expect(found[0]).toEqual([false, 16]);
    expect(found[1]).toEqual([false, 16]);
    for (const [i, [recompute, slots]] of found.entries()) {
      const [before, slotsBefore] = found[Math.max(0, i - 1)]!;
      expect(Number(recompute)).toBeGreaterThanOrEqual(Number(before));
      if (recompute === before) expect(slots).toBeLessThanOrEqual(slotsBefore);
    }
    expect(found.at(-1)![0]).toBe(true);
    for (const slots of [8, 4, 2]) {
      const limit = trainingBytes(spec, { ...asked, slots: slots + 1 }) / 0.9;
      expect(withinMemory(spec, asked, limit)).toEqual({ recompute: false, slots });
    }
    expect(withinMemory(spec, need(510), 4 * GIB)).toEqual({ recompute: false, slots: 0 });
    expect(withinMemory(spec, need(510), 3 * GIB)).toEqual({ recompute: true, slots: 0 });
    expect(withinMemory(spec, need(510, { recompute: true }), undefined)).toEqual({ recompute: true, slots: 0 });
  });

  test('weights in fewer bits take less, one copy of them serves all graphs, and each worker has activations', () => {
    const inLayers = 357_826_560; // weights of the matrices in the layers
    const bytes = (changes: Partial<MemoryNeed>) => trainingBytes(spec, need(510, changes));
    const widened = 2 * 4 * spec.hidden * spec.intermediate;
    expect(bytes({ frozen: 'fp32' }) - bytes({ frozen: 'fp16' })).toBe(2 * inLayers - widened);
    expect(bytes({ frozen: 'fp16' }) - bytes({ frozen: 'int8' })).toBe(inLayers);
    expect(bytes({ forwardGraphs: 2 })).toBe(bytes({ forwardGraphs: 0 })); // but for what their passes take
    expect(bytes({ frozen: 'w8a8', forwardGraphs: 1 })).toBeGreaterThan(bytes({ frozen: 'w8a8' }) + inLayers);
    const judged = bytes({ frozen: 'int8', forwardGraphs: 2 }) - bytes({ frozen: 'int8' });
    expect(judged).toBeCloseTo(2 * widened, 0);
    const [one, two, three] = [1, 2, 3].map((workers) => bytes({ workers }));
    const activations = 4 * 550 * spec.layers * (3 * spec.intermediate + 8 * spec.hidden);
    expect(three! - two!).toBeGreaterThan(activations);
    expect(two! - one! - (three! - two!)).toBeCloseTo(0.15 * GIB, 0); // with workers the first process makes no passes
    expect(three! - two!).toBeLessThan(one!);
  });

  test('rows with losses take the vocabulary thrice, each rollout a KV cache and its logits', () => {
    const bytes = (changes: Partial<MemoryNeed>) => trainingBytes(spec, need(510, changes));
    expect(bytes({ scored: 140 }) - bytes({ scored: 40 })).toBeCloseTo(3 * 4 * 100 * spec.vocab, 0);
    const position = spec.layers * 2 * spec.kvHeads * spec.headDim * 4; // keys and values
    expect(bytes({ slots: 16 }) - bytes({ slots: 0 })).toBeCloseTo(16 * (550 * position + 4 * spec.vocab), 0);
    const untied = trainingBytes({ ...spec, tied: false }, need(510)) - bytes({});
    expect(untied).toBeCloseTo(4 * spec.hidden * spec.vocab, 0); // a second table
  });

  test('a graph that goes forward takes the activations of one layer, a teacher also its distribution', () => {
    const bytes = (changes: Partial<MemoryNeed>) => trainingBytes(spec, need(510, changes)) / GIB;
    // Measured with four layers of this shape, 510 tokens of code, 512 of text and a target of 40: a teacher took 131
    // MiB, and its distribution 83 MiB more in the pass that is trained through.
    const ofTeacher = bytes({ forwardGraphs: 1, forwardRows: 1062 }) - bytes({ forwardGraphs: 1 });
    expect(ofTeacher * 1024).toBeCloseTo((4 * 1062 * (3 * spec.intermediate + 8 * spec.hidden)) / 2 ** 20, 3);
    expect((bytes({ teaches: true }) - bytes({})) * 1024).toBeCloseTo(93, 0);
  });

  test('too little memory is refused with what it would take', () => {
    expect(() => withinMemory(spec, need(2000), 2 * GIB)).toThrow(/--memory of 2\.0 GiB: this run takes 3\.\d GiB/);
  });
});
