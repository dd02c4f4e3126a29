/** Rollouts after soft tokens are those of the reference, however many decode together, and no slot of them idles. */
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest';
import { DecoderSession } from '../../../services/lib/engine/session.ts';
import { GREEDY } from '../../../services/lib/request/next-token.ts';
import { TrainableProjector } from '../../../training/step/projector.ts';
import { drawing, Rollouts } from '../../../training/step/rollouts.ts';
import { temporaryFolder } from '../../support/models.ts';
import { openTrainingGoldens } from '../../support/training-goldens.ts';

const folder = await temporaryFolder();
const goldens = await openTrainingGoldens();
afterAll(() => goldens.close());
afterEach(() => vi.restoreAllMocks());
const { facts, spec, weights, samples } = goldens;
const place = { folder, threads: 1, spec, weights, layers: 'fp32', maxPositions: 128 } as const;

async function withRollouts<T>(slots: number, stops: readonly number[], use: (rollouts: Rollouts) => Promise<T>) {
  const rollouts = await Rollouts.load(place, { slots, tokens: 12, stopIds: new Set(stops) });
  try {
    return await use(rollouts);
  } finally {
    await rollouts.dispose();
  }
}

/** Steps of slots that each take the next sequence as soon as theirs has ended. A prompt gives the first token. */
function fewestSteps(lengths: readonly number[], slots: number): number {
  const ends = new Array<number>(slots).fill(0);
  for (const length of lengths) {
    const slot = ends.indexOf(Math.min(...ends));
    ends[slot]! += length - 1;
  }
  return Math.max(...ends);
}

describe.each([2, 3] as const)('with a projector of %i layers', (layers) => {
  const wanted = facts.samples.map(({ greedy }) => greedy[layers]!.ids);
  const stop = wanted[1]![5]!;
  /** The same rollouts where this token ends them. */
  const ended = wanted.map((ids) => (ids.includes(stop) ? ids.slice(0, ids.indexOf(stop) + 1) : ids));
  const softTokens = async () => {
    const { widths, parameters } = await goldens.projector(layers);
    const projector = await TrainableProjector.load({ widths }, parameters, 'mse', place);
    try {
      const soft: Float32Array[] = [];
      for (const { embeddings } of samples) soft.push(await projector.project(embeddings));
      return soft;
    } finally {
      projector.dispose();
    }
  };

  test.each([1, 2, 3, 4, 6])('sequences of which %i decode together are those of the reference', async (slots) => {
    const soft = await softTokens();
    expect(await withRollouts(slots, [], (rollouts) => rollouts.greedy(samples, soft))).toEqual(wanted);
    // A rollout ends with its stop token; the others go on.
    expect(ended).not.toEqual(wanted);
    expect(await withRollouts(slots, [stop], (rollouts) => rollouts.greedy(samples, soft))).toEqual(ended);
  });

  test('a slot takes the next prompt as soon as its sequence has ended', async () => {
    const soft = await softTokens();
    const steps = vi.spyOn(DecoderSession.prototype, 'step');
    await withRollouts(2, [stop], (rollouts) => rollouts.greedy(samples, soft));
    const lengths = ended.map(({ length }) => length);
    expect(steps).toHaveBeenCalledTimes(fewestSteps(lengths, 2));
    const [a, b, c, d] = lengths as [number, number, number, number];
    expect(fewestSteps(lengths, 2)).toBeLessThan(Math.max(a, b) - 1 + Math.max(c, d) - 1);
  });

  test('a call that needs fewer slots than there are computes fewer, and those of others stay as they were', async () => {
    const soft = await softTokens();
    using steps = vi.spyOn(DecoderSession.prototype, 'step');
    const rows = () => new Set(steps.mock.calls.map(([ids]) => ids.length));
    await withRollouts(6, [stop], async (rollouts) => {
      expect(await rollouts.greedy(samples, soft, undefined, 2)).toEqual(ended);
      expect(rows()).toEqual(new Set([2]));
      steps.mockClear();
      expect(await rollouts.greedy(samples, soft)).toEqual(ended);
      expect(rows()).toEqual(new Set([6]));
      steps.mockClear();
      expect(await rollouts.greedy(samples, soft, undefined, 66)).toEqual(ended);
      expect(rows()).toEqual(new Set([6])); // never more than there are
    });
  });

  test('a prompt that is continued twice is computed once, and each continuation is what it is alone', async () => {
    const soft = await softTokens();
    const samplings = (i: number) => [GREEDY, drawing(100 + i)];
    const prompt = (i: number) => ({ sample: samples[i]!, soft: soft[i]!, samplings: samplings(i) });
    const prompts = samples.map((_, i) => prompt(i));
    const computed = vi.spyOn(DecoderSession.prototype, 'chunk');
    await withRollouts(2, [stop], async (rollouts) => {
      const together = await rollouts.all(prompts);
      expect(computed).toHaveBeenCalledTimes(samples.length);
      expect(together.map(([greedy]) => greedy)).toEqual(ended);
      expect(together.map(([, drawn]) => drawn)).not.toEqual(ended);
      for (const [i, one] of prompts.entries()) {
        const [greedy] = await rollouts.all([{ ...one, samplings: [GREEDY] }]);
        const [drawn] = await rollouts.all([{ ...one, samplings: [drawing(100 + i)] }]);
        expect([greedy![0], drawn![0]], one.sample.name).toEqual(together[i]);
      }
      expect(await rollouts.all(prompts.toReversed())).toEqual(together.toReversed());
    });
  });
});
