/** The check of decode steps, by fakes. */
import { expect, test } from 'vitest';
import { CHECKED_POSITIONS, CHECKED_PROMPT, limitsOf, promptIds } from '../../services/lib/engine/self-check.ts';
import { assertStepsRight, type SteppingDecoder } from '../../services/lib/engine/step-check.ts';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';

const VOCAB = 17;
const SLOTS = 3;
const LAYOUT = { layers: 1, kvHeads: 1, headDim: 4 };

/** The logits after a token at a position. */
const row = (token: number, position: number) =>
  Array.from({ length: VOCAB }, (_, i) => Math.sin(token * 13 + position * 3 + i * 7) * 4);

const REFERENCE = Float32Array.from(
  Array.from({ length: CHECKED_POSITIONS }, (_, at) => row(promptIds(VOCAB)[at % CHECKED_PROMPT]!, at)).flat(),
);

interface Faults {
  /** What the device makes of a row of logits. @param step counted from 0. */
  readonly logits?: (logits: readonly number[], at: number, step: number) => readonly number[];
  readonly pick?: (likeliest: number, at: number) => number;
  readonly picksTokens?: boolean;
}

/** A decoder that knows the sequence of a slot by the length that its KV must have. */
function decoder({ logits = (of) => of, pick = (id) => id, picksTokens = true }: Faults = {}) {
  const steps: { rows: number; lengths: number[] }[] = [];
  const store = new CpuKvStore(LAYOUT, SLOTS, CHECKED_POSITIONS);
  store.write(0, { start: 0, end: CHECKED_POSITIONS, rowStart: 0, rowEnd: 2 }, (_, to) => to.fill(1));
  const compute = (ids: Int32Array, lengths: Int32Array) => {
    for (let slot = 0; slot < ids.length; slot++) {
      const [kv] = store.read(slot, { start: 0, end: CHECKED_PROMPT, rowStart: 1, rowEnd: 2 });
      expect(kv!.every((byte) => byte === 1)).toBe(true); // the prompt is in every slot
    }
    return [...ids].map((id, at) => row(id, lengths[at]!));
  };
  const fake: SteppingDecoder = {
    vocabSize: VOCAB,
    picksTokens,
    pool: { store, slots: SLOTS },
    async step(ids, lengths) {
      steps.push({ rows: ids.length, lengths: [...lengths] });
      return Float32Array.from(compute(ids, lengths).flatMap((of, at) => logits(of, at, steps.length - 1)));
    },
    async pick(ids, lengths) {
      return Int32Array.from(compute(ids, lengths).map((of, at) => pick(of.indexOf(Math.max(...of)), at)));
    },
  };
  return { fake, steps };
}

const check = (faults?: Faults) =>
  assertStepsRight(decoder(faults).fake, REFERENCE, limitsOf('fp16', 1), 'the test GPU');

test('steps of one row and of all slots are tried twice each, with other lengths', async () => {
  const { fake, steps } = decoder();
  await assertStepsRight(fake, REFERENCE, limitsOf('fp16', 1), 'the test GPU');
  expect(steps).toEqual([
    { rows: 1, lengths: [48] },
    { rows: 1, lengths: [45] },
    { rows: 3, lengths: [48, 41, 34] },
    { rows: 3, lengths: [45, 38, 31] },
  ]);
});

let first: readonly number[] | undefined;
test.each<[string, Faults]>([
  ['rounds too much in its last row', { logits: (of, at) => (at === 2 ? of.map((x) => Math.round(x)) : of) }],
  ['gives numbers that are not finite', { logits: (of) => of.map(() => Number.NaN) }],
  [
    'replays a step without reading its new inputs',
    {
      logits: (of, at, step) => {
        if (at === 0 && step === 0) first = of;
        return step === 1 ? first! : of;
      },
    },
  ],
])('a device that %s is refused with the figure and the limit', async (_, faults) => {
  await expect(check(faults)).rejects.toMatchObject({
    code: 'provider_unavailable',
    message: expect.stringMatching(
      /the test GPU computes wrong: a decode step of [13] rows has a KL divergence of .* at most 2\.0e-3 is right for fp16/,
    ),
  });
});

test('a device that picks another token than the likeliest is refused, and one that finds none', async () => {
  for (const wrong of [(id: number) => (id + 1) % VOCAB, () => -1]) {
    const pick = (id: number, at: number) => (at === 1 ? wrong(id) : id);
    await expect(check({ pick })).rejects.toMatchObject({
      code: 'provider_unavailable',
      message: expect.stringMatching(
        /of the logits of a decode step of 3 rows it picks token -?\d+ in row 1, and \d+ is/,
      ),
    });
  }
});

test('a device that rounds a little passes, also one that picks no tokens itself', async () => {
  await check({ logits: (of) => of.map((x, i) => x + (i % 2) * 1e-2), picksTokens: false });
});
