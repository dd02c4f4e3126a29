/** The check of a device, by fakes: what is written must come back, and the CPU's distributions must be computed. */
import { describe, expect, test } from 'vitest';
import {
  assertComputesRight,
  assertKeepsKv,
  type CheckedDecoder,
  type CheckedKv,
  KL_LIMIT,
  limitsOf,
  referenceOf,
} from '../../services/lib/engine/self-check.ts';
import type { PromptChunk } from '../../services/lib/engine/session.ts';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import type { KvRange } from '../../services/lib/kv/layout.ts';
import { PRECISIONS } from '../../services/lib/model/bundle/choices.ts';

const VOCAB = 17;

/**
 * A decoder whose logits at a position depend on its token, as those of a network do on all before.
 * @param error what the device adds to a logit, by position within the run, tokens of the run, and index of the logit.
 */
function decoder(
  error: (position: number, tokens: number, index: number) => number = () => 0,
  readsSoftTokens = true,
): CheckedDecoder {
  const row = (token: number, position: number, tokens: number) =>
    Array.from({ length: VOCAB }, (_, i) => Math.sin(token * 13 + i * 7) * 4 + error(position, tokens, i));
  return {
    vocabSize: VOCAB,
    hiddenSize: 8,
    async chunk({ ids, logitRows, soft }: PromptChunk) {
      const tokens = Array.from(ids);
      if (readsSoftTokens) for (const [i, at] of soft.positions.entries()) tokens[at] = 100 * soft.vectors[i * 8 + 1]!;
      return Float32Array.from(logitRows.flatMap((at) => row(tokens[at] as number, at, ids.length)));
    },
    async step(ids: Int32Array) {
      return Float32Array.from(row(ids[0] as number, 0, 1));
    },
  };
}

const check = async (on: CheckedDecoder, precision: (typeof PRECISIONS)[number] = 'fp32', tolerance = 1) =>
  assertComputesRight(on, await referenceOf(decoder()), limitsOf(precision, tolerance), 'the test GPU');
const noise = (size: number) => (_: number, __: number, i: number) => (i % 2 === 0 ? size : -size);

describe('assertComputesRight', () => {
  test('a device that rounds a little passes, and its figures are given', async () => {
    const { kl, chunkedKl } = await check(decoder(noise(1e-4)));
    expect(kl).toBeGreaterThan(1e-9);
    expect(kl).toBeLessThan(KL_LIMIT.fp32);
    expect(chunkedKl).toBe(0);
  });

  test('a device whose distributions are not those of the CPU is refused with the figure, the limit and the remedy', async () => {
    await expect(check(decoder(noise(0.1)))).rejects.toMatchObject({
      code: 'provider_unavailable',
      message: expect.stringMatching(
        /the test GPU computes wrong: .*48 tokens.*KL divergence of [3-9]\.\de-3 .*at most 1\.0e-6 is right for fp32.*--provider cpu/,
      ),
    });
  });

  test('a device that does not read soft tokens is refused', async () => {
    await expect(
      check(
        decoder(() => 0, false),
        'int4',
      ),
    ).rejects.toMatchObject({
      code: 'provider_unavailable',
      message: expect.stringMatching(
        /4 positions of a prompt with soft tokens have a KL divergence of .* at most 6\.0e-2/,
      ),
    });
  });

  test('weights of few bits may differ more', async () => {
    const rounded = decoder(noise(0.05));
    await expect(check(rounded, 'fp32')).rejects.toMatchObject({ code: 'provider_unavailable' });
    expect((await check(rounded, 'int4')).kl).toBeGreaterThan(KL_LIMIT.fp16);
  });

  test('a tolerance raises both limits by a factor, and the refusal names the setting', async () => {
    const far = decoder(noise(0.3)); // KL 3e-2 to 4e-2
    await expect(check(far, 'int4')).rejects.toThrow(/at most 1\.5e-2 is right for int4.*raise --check-tolerance/);
    await expect(check(far, 'int4', 2)).rejects.toThrow(/at most 3\.0e-2 is right for int4/);
    expect((await check(far, 'int4', 10)).kl).toBeGreaterThan(2 * KL_LIMIT.int4);
    const long = decoder((_position, tokens, i) => (tokens >= 32 && i % 2 === 0 ? 0.15 : 0));
    await expect(check(long, 'int4')).rejects.toThrow(/in one run .* at most 2\.0e-3/);
    expect((await check(long, 'int4', 10)).chunkedKl).toBeGreaterThan(2e-3);
  });

  test('kernels for 32 tokens and more that are wrong show against shorter runs, also with few bits', async () => {
    const long = decoder((position, tokens, i) => (tokens >= 32 && position >= 8 && i % 2 === 0 ? 0.15 : 0));
    await expect(check(long, 'int4')).rejects.toMatchObject({
      code: 'provider_unavailable',
      message: expect.stringMatching(/48 tokens in one run has a KL divergence of .* from the same in two/),
    });
  });

  test.each([
    ['a prompt', 48],
    ['a step', 1],
  ])('numbers that are not finite in %s are refused', async (_, wrong) => {
    const broken = decoder((_position, tokens) => (tokens === wrong ? Number.NaN : 0));
    await expect(check(broken, 'int4')).rejects.toMatchObject({ code: 'provider_unavailable' });
  });

  test.each(PRECISIONS)('there is a limit for %s', (precision) => {
    expect(KL_LIMIT[precision]).toBeGreaterThan(0);
  });
});

const LAYOUT = { layers: 2, kvHeads: 2, headDim: 4 };

/** Memory of which some writes are lost, as those of a device that has no more. */
class LossyKv implements CheckedKv {
  readonly #store: CpuKvStore;
  readonly #lost: (slot: number, row: number) => boolean;
  readonly staging: number | undefined;
  readonly slots: number;

  constructor(type: 'float32' | 'float16', lost: (slot: number, row: number) => boolean, staging?: number) {
    this.#store = new CpuKvStore({ ...LAYOUT, type }, 4, 16);
    this.slots = staging ?? 4;
    this.#lost = lost;
    this.staging = staging;
  }
  get layout() {
    return this.#store.layout;
  }
  get capacity() {
    return this.#store.capacity;
  }
  async read(slot: number, range: KvRange) {
    return this.#store.read(slot, range);
  }
  async write(slot: number, range: KvRange, bytes: Uint8Array) {
    const size = bytes.length / (range.rowEnd - range.rowStart);
    for (let row = range.rowStart; row < range.rowEnd; row++) {
      if (this.#lost(slot, row)) continue;
      const at = (row - range.rowStart) * size;
      this.#store.write(slot, { ...range, rowStart: row, rowEnd: row + 1 }, bytes.subarray(at, at + size));
    }
  }
}

describe('assertKeepsKv', () => {
  test.each(['float32', 'float16'] as const)('memory of %s that keeps all passes', async (type) => {
    await assertKeepsKv(new LossyKv(type, () => false), 'the test GPU');
    await assertKeepsKv(new LossyKv(type, () => false, 3), 'the test GPU');
  });

  test.each([
    ['the last row of the last slot', 3, 7],
    ['a row in the middle', 1, 4],
    ['the first row', 0, 0],
  ])('%s that is lost is found, and named with the arithmetic', async (_, slot, row) => {
    const kv = new LossyKv('float16', (s, r) => s === slot && r === row);
    await expect(assertKeepsKv(kv, 'the test GPU')).rejects.toMatchObject({
      code: 'out_of_memory',
      message: expect.stringMatching(
        new RegExp(
          `the test GPU does not keep .*row ${row} at the end of slot ${slot} .*4 slots x 16 tokens x 64 bytes`,
        ),
      ),
    });
  });

  test('the slot in which a device computes prompts is checked too', async () => {
    const kv = new LossyKv('float32', (slot) => slot === 3, 3);
    await expect(assertKeepsKv(kv, 'the test GPU')).rejects.toMatchObject({ code: 'out_of_memory' });
  });
});
