import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { OutputHistory, sample, tokenLogprob } from '../../services/lib/engine/sampler.ts';
import { noiseBits, wordsAt } from '../../services/lib/numeric/random.ts';
import { GREEDY, type Sampling } from '../../services/lib/request/next-token.ts';

const sampling = (changes: Partial<Sampling>): Sampling => ({ ...GREEDY, ...changes });
const NO_HISTORY = new OutputHistory();
const historyOf = (...ids: number[]) => {
  const history = new OutputHistory();
  for (const id of ids) history.add(id);
  return history;
};
const uniform = (seed: number, position: number) => wordsAt(seed, position)[0] / 2 ** 32;
const coded = (code: string) => expect.objectContaining({ code });

/** A sampler of the same semantics that sorts everything. The fast sampler must agree with it. */
function naive(logits: Float32Array, s: Sampling, position: number, history: OutputHistory) {
  const adjusted = Float32Array.from(logits);
  if (position < s.minTokens) for (const id of s.stopTokenIds) adjusted[id] = -Infinity;
  for (const [id, bias] of s.logitBias) adjusted[id]! += bias;
  for (const [id, n] of history.counts) adjusted[id]! -= n * s.frequencyPenalty + s.presencePenalty;

  let ranked = Array.from(adjusted, (logit, id) => ({ id, logit })).sort((a, b) => b.logit - a.logit || a.id - b.id);
  const max = ranked[0]!.logit;
  if (s.temperature === 0) return { id: ranked[0]!.id, margin: Infinity };

  const weight = (logit: number) => Math.exp((logit - max) / s.temperature);
  let margin = Infinity; // how near any decision was to the rounding of sums
  if (s.minP > 0) {
    for (const { logit } of ranked) margin = Math.min(margin, Math.abs(weight(logit) - s.minP));
    if (s.minP === 1) margin = Infinity; // exact: only those equal to the best stay
    ranked = ranked.filter(({ logit }) => weight(logit) >= s.minP);
  }
  if (s.topK > 0) ranked = ranked.slice(0, s.topK);
  if (s.topP < 1) {
    const total = ranked.reduce((sum, { logit }) => sum + weight(logit), 0);
    let reached = 0;
    let keep = 0;
    while (keep < ranked.length && reached < s.topP * total) {
      reached += weight(ranked[keep++]!.logit);
      margin = Math.min(margin, Math.abs(reached / total - s.topP));
    }
    ranked = ranked.slice(0, keep);
  }
  const [a, b, c, d] = wordsAt(s.seed, position);
  const v = (id: number) => (noiseBits(id, a, b) + (noiseBits(id, c, d) + 0.5) / 2 ** 32) / 2 ** 32;
  const race = ranked
    .map(({ id, logit }) => ({ id, reached: logit / s.temperature - Math.log(-Math.log(1 - v(id))) }))
    .sort((one, other) => other.reached - one.reached);
  margin = Math.min(margin, race[0]!.reached - (race[1]?.reached ?? -Infinity));
  return { id: race[0]!.id, margin };
}

/** Logits with and without ties; multiples of 1/1024, so that different logits never round to equal weights. */
const logitRows = (maxLength: number) =>
  fc.oneof(
    fc.array(fc.integer({ min: -4, max: 4 }), { minLength: 1, maxLength }),
    fc.array(
      fc.integer({ min: -30 * 1024, max: 30 * 1024 }).map((x) => x / 1024),
      { minLength: 1, maxLength },
    ),
  );

const samplings = (vocab: number) => {
  const id = fc.nat({ max: vocab - 1 });
  return fc.record<Sampling>({
    temperature: fc.constantFrom(0, 0.05, 0.2, 0.7, 1, 2),
    topP: fc.constantFrom(1, 0.999, 0.95, 0.61, 0.3, 0.01),
    topK: fc.constantFrom(0, 1, 2, 5, 50, 1000),
    minP: fc.constantFrom(0, 0.013, 0.2, 0.77, 1),
    seed: fc.maxSafeNat(),
    logprobs: fc.constant(-1),
    frequencyPenalty: fc.constantFrom(0, 0, 0.5, -1.5, 2),
    presencePenalty: fc.constantFrom(0, 0, 0.3, -2),
    logitBias: fc
      .dictionary(id.map(String), fc.constantFrom(-100, -1, 0.5, 100), { maxKeys: 4 })
      .map((biases) => new Map(Object.entries(biases).map(([key, bias]) => [Number(key), bias]))),
    stopTokenIds: fc.uniqueArray(id, { maxLength: Math.min(3, vocab - 1) }),
    minTokens: fc.nat({ max: 4 }),
    priorOutputIds: fc.constant([]),
  });
};

const cases = (maxLength: number) =>
  logitRows(maxLength).chain((row) =>
    fc.record({
      logits: fc.constant(Float32Array.from(row)),
      settings: samplings(row.length),
      position: fc.nat({ max: 6 }),
      history: fc.array(fc.nat({ max: row.length - 1 }), { maxLength: 8 }).map((ids) => historyOf(...ids)),
    }),
  );

describe('sample', () => {
  it('sample agrees with the naive sampler', () => {
    fc.assert(
      fc.property(cases(60), ({ logits, settings, position, history }) => {
        const expected = naive(logits, settings, position, history);
        fc.pre(expected.margin > 1e-9);
        expect(sample(logits, settings, position, history)).toEqual({ id: expected.id });
      }),
      { numRuns: 3000 },
    );
  });

  it('sample agrees with the naive sampler on vocabularies that fill the buckets of its histogram', () => {
    fc.assert(
      fc.property(fc.nat(), fc.constantFrom(0.3, 3, 12), samplings(8000), (noise, spread, settings) => {
        const logits = Float32Array.from({ length: 8000 }, (_, i) => {
          const u = uniform(noise, i);
          return spread * Math.log(u / (1 - u) + 1e-9);
        });
        const expected = naive(logits, settings, 0, NO_HISTORY);
        fc.pre(expected.margin > 1e-9);
        expect(sample(logits, settings, 0, NO_HISTORY)).toEqual({ id: expected.id });
      }),
      { numRuns: 100 },
    );
  });

  it('a top-p that rounding of the sums cannot reach keeps all tokens', () => {
    const almostAll = 1 - 2 ** -53;
    for (let seed = 0; seed < 300; seed++) {
      const logits = Float32Array.from({ length: 300 }, (_, i) => 4 * uniform(seed, i));
      const all = sampling({ temperature: 1, seed });
      expect(sample(logits, { ...all, topP: almostAll }, 0, NO_HISTORY)).toEqual(sample(logits, all, 0, NO_HISTORY));
    }
  });

  it('sample leaves the logits and the memory around them unchanged', () => {
    fc.assert(
      fc.property(cases(60), ({ logits, settings, position, history }) => {
        const shared = new Float32Array(logits.length + 16).fill(Number.NaN);
        shared.set(logits, 8);
        const before = new Uint32Array(shared.buffer.slice(0));
        sample(shared.subarray(8, 8 + logits.length), { ...settings, logprobs: 3 }, position, history);
        expect(new Uint32Array(shared.buffer)).toEqual(before);
      }),
    );
  });

  it('sample leaves the logits unchanged when it throws', () => {
    const logits = Float32Array.from([1, 2, 3]);
    const biased = sampling({
      logitBias: new Map([
        [0, 5],
        [3, 1],
      ]),
    });
    expect(() => sample(logits, biased, 0, NO_HISTORY)).toThrow(coded('invalid_request'));
    expect([...logits]).toEqual([1, 2, 3]);
  });

  it('sample repeats its result, whatever was sampled in between', () => {
    fc.assert(
      fc.property(cases(60), cases(200), (one, other) => {
        const first = sample(one.logits, one.settings, one.position, one.history);
        sample(other.logits, other.settings, other.position, other.history);
        expect(sample(one.logits, one.settings, one.position, one.history)).toEqual(first);
      }),
    );
  });

  it('sample draws differently at another position and with another seed', () => {
    const logits = new Float32Array(1000);
    const ids = [0, 1, 2, 3].flatMap((position) =>
      [1, 2].map((seed) => sample(logits, sampling({ temperature: 1, seed }), position, NO_HISTORY).id),
    );
    expect(new Set(ids).size).toBe(ids.length);
  });
});

describe('greedy', () => {
  it.each([1, 7, 8, 9, 16, 17, 31])('greedy finds the maximum at every place of %d logits', (vocab) => {
    for (let place = 0; place < vocab; place++) {
      const logits = new Float32Array(vocab).fill(-5);
      logits[place] = 1;
      expect(sample(logits, GREEDY, 0, NO_HISTORY)).toEqual({ id: place });
    }
  });

  it('greedy takes the lowest id on ties', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 40 }), (row) => {
        expect(sample(Float32Array.from(row), GREEDY, 0, NO_HISTORY).id).toBe(row.indexOf(Math.max(...row)));
      }),
    );
  });

  it.each([1, 8, 9, 20])('greedy refuses NaN at every place of %d logits and names the place', (vocab) => {
    for (let place = 0; place < vocab; place++) {
      const logits = new Float32Array(vocab).fill(1);
      logits[place] = Number.NaN;
      expect(() => sample(logits, GREEDY, 0, NO_HISTORY)).toThrow(coded('runtime_failed'));
      expect(() => sample(logits, sampling({ temperature: 1 }), 0, NO_HISTORY)).toThrow(
        `NaN as the logit of token ${place}`,
      );
    }
  });

  it.each([
    { name: 'infinity', logits: [0, Infinity] },
    { name: 'no token left', logits: [-Infinity, -Infinity] },
    { name: 'no logits', logits: [] },
  ])('greedy refuses $name', ({ logits }) => {
    expect(() => sample(Float32Array.from(logits), GREEDY, 0, NO_HISTORY)).toThrow(coded('runtime_failed'));
  });
});

describe('draws', () => {
  /** Share of draws that change when the logits are rounded differently. */
  function turned(vocab: number, draws: number, rounding: number): number {
    let turns = 0;
    const logits = Float32Array.from({ length: vocab }, (_, i) => 8 * uniform(7, i));
    const rounded = logits.map((logit, i) => logit + rounding * (uniform(8, i) - 0.5));
    for (let position = 0; position < draws; position++) {
      const drawn = sampling({ temperature: 0.8, seed: 3 });
      const [one, other] = [logits, rounded].map((row) => sample(row, drawn, position, NO_HISTORY).id);
      if (one !== other) turns++;
    }
    return turns / draws;
  }

  it('rounding changes a draw only when the first two tokens are nearly tied', () => {
    // Measured: 0.45 %, and 13 % by the inverse of the cumulative distribution.
    expect(turned(16_000, 1_000, 0.01)).toBeLessThan(0.02);
  });
});

describe('adjustments', () => {
  const logits = Float32Array.from([1, 2, 3, 0]);

  it('a logit bias can force and forbid a token', () => {
    const biased = (id: number, bias: number) => sampling({ logitBias: new Map([[id, bias]]) });
    expect(sample(logits, biased(3, 100), 0, NO_HISTORY).id).toBe(3);
    expect(sample(logits, biased(2, -100), 0, NO_HISTORY).id).toBe(1);
  });

  it('penalties give logit - count * frequency - (count > 0) * presence', () => {
    // Token 2 leads token 1 by 1.
    const chosen = (changes: Partial<Sampling>, ...output: number[]) =>
      sample(logits, sampling(changes), output.length, historyOf(...output)).id;
    expect(chosen({ frequencyPenalty: 0.4 }, 2, 2)).toBe(2);
    expect(chosen({ frequencyPenalty: 0.4 }, 2, 2, 2)).toBe(1);
    expect(chosen({ presencePenalty: 0.9 }, 2, 2, 2)).toBe(2);
    expect(chosen({ presencePenalty: 1.1 }, 2)).toBe(1);
    expect(chosen({ frequencyPenalty: 0.4, presencePenalty: 0.7 }, 2)).toBe(1);
    expect(chosen({ presencePenalty: -2 }, 1)).toBe(1);
  });

  it('stop ids cannot be chosen before min_tokens, even with a bias', () => {
    const stops = sampling({ stopTokenIds: [2], minTokens: 2, logitBias: new Map([[2, 100]]) });
    expect([0, 1, 2, 3].map((position) => sample(logits, stops, position, NO_HISTORY).id)).toEqual([1, 1, 2, 2]);
  });

  it('a vocabulary of stop ids only is refused before min_tokens', () => {
    const stops = sampling({ stopTokenIds: [0, 1, 2, 3], minTokens: 1 });
    expect(() => sample(logits, stops, 0, NO_HISTORY)).toThrow(coded('runtime_failed'));
  });

  it.each([-1, 4, 0.5])('a bias on token %d outside the vocabulary is refused', (id) => {
    expect(() => sample(logits, sampling({ logitBias: new Map([[id, 1]]) }), 0, NO_HISTORY)).toThrow(`token ${id}`);
  });
});

describe('frequencies', () => {
  const DRAWS = 20_000;
  const logits = Float32Array.from([0, 1, 2, -1, 0.5, -Infinity, 1.5, -3]);

  const softmax = (row: readonly number[]) => {
    const weights = row.map(Math.exp);
    const total = weights.reduce((a, b) => a + b, 0);
    return weights.map((weight) => weight / total);
  };

  // Critical values of chi-square at p = 0.001 for 1..7 degrees of freedom.
  const LIMITS = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32];

  it.each([
    { name: 'the softmax', changes: { temperature: 1 }, row: [...logits] },
    { name: 'temperature', changes: { temperature: 0.5 }, row: [...logits].map((x) => x / 0.5) },
    { name: 'top-k', changes: { temperature: 1, topK: 3 }, row: [...logits].map((x) => (x >= 1 ? x : -Infinity)) },
    // Shares in order: 0.43 (id 2), 0.26 (6), 0.16 (1), 0.10 (4): three reach 0.7, and top-k first makes it two.
    { name: 'top-p', changes: { temperature: 1, topP: 0.7 }, row: [...logits].map((x) => (x >= 1 ? x : -Infinity)) },
    {
      name: 'top-p after top-k',
      changes: { temperature: 1, topP: 0.7, topK: 3 },
      row: [...logits].map((x) => (x >= 1.5 ? x : -Infinity)),
    },
    // e^-1.5 = 0.22 of the likeliest, e^-1 = 0.37
    { name: 'min-p', changes: { temperature: 1, minP: 0.3 }, row: [...logits].map((x) => (x >= 1 ? x : -Infinity)) },
    // The temperature comes before min-p: at 2 the share of id 0 is e^-1 = 0.37
    {
      name: 'min-p after temperature',
      changes: { temperature: 2, minP: 0.3 },
      row: [...logits].map((x) => (x >= 0 ? x / 2 : -Infinity)),
    },
  ])('the frequencies of drawn tokens follow $name', ({ changes, row }) => {
    const counts = new Array<number>(logits.length).fill(0);
    for (let position = 0; position < DRAWS; position++) {
      counts[sample(logits, sampling({ ...changes, seed: 11 }), position, NO_HISTORY).id]! += 1;
    }
    const shares = softmax(row);
    let chiSquare = 0;
    let kinds = 0;
    shares.forEach((share, id) => {
      if (share === 0) expect(counts[id], `token ${id} is excluded`).toBe(0);
      else {
        chiSquare += (counts[id]! - share * DRAWS) ** 2 / (share * DRAWS);
        kinds++;
      }
    });
    expect(chiSquare).toBeLessThan(LIMITS[kinds - 2]!);
  });
});

describe('logprobs', () => {
  const logits = Float32Array.from([1, 3, -2, 3, 0, -Infinity]);
  const logTotal = Math.log([...logits].reduce((sum, x) => sum + Math.exp(x), 0));

  it('logprobs are reported only when asked for', () => {
    expect(sample(logits, sampling({ logprobs: -1 }), 0, NO_HISTORY)).toEqual({ id: 1 });
    expect(sample(logits, sampling({ logprobs: 0 }), 0, NO_HISTORY)).toEqual({
      id: 1,
      logprob: expect.closeTo(3 - logTotal, 12),
      top: [],
    });
  });

  it("logprobs are the model's own, whatever the temperature, bias, penalties and top-k", () => {
    const settings = sampling({
      temperature: 0.3,
      topK: 1,
      logprobs: 2,
      logitBias: new Map([[4, 50]]),
      presencePenalty: 1,
    });
    expect(sample(logits, settings, 1, historyOf(1))).toEqual({
      id: 4,
      logprob: expect.closeTo(0 - logTotal, 12),
      top: [
        { id: 1, logprob: expect.closeTo(3 - logTotal, 12) },
        { id: 3, logprob: expect.closeTo(3 - logTotal, 12) },
      ],
    });
  });

  it('logprobs leave out tokens of probability 0', () => {
    expect(tokenLogprob(logits, 5, 20)).toEqual({
      id: 5,
      logprob: -Infinity,
      top: [1, 3, 0, 4, 2].map((id) => ({ id, logprob: expect.closeTo(logits[id]! - logTotal, 12) })),
    });
  });

  it('the probabilities of all tokens sum to one, sorted by logprob, then id', () => {
    fc.assert(
      fc.property(logitRows(50), fc.nat({ max: 60 }), (row, count) => {
        const top = tokenLogprob(Float32Array.from(row), 0, row.length).top!;
        expect(top.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0)).toBeCloseTo(1, 9);
        const byLogprob = [...top].sort((a, b) => b.logprob - a.logprob || a.id - b.id);
        expect(top).toEqual(byLogprob);
        expect(tokenLogprob(Float32Array.from(row), 0, count).top).toEqual(byLogprob.slice(0, count));
      }),
    );
  });

  it('logprobs do not overflow on large logits', () => {
    const top = tokenLogprob(Float32Array.from([1000, 1000, -1000]), 0, 2).top!;
    expect(top.map(({ logprob }) => logprob)).toEqual([expect.closeTo(-Math.LN2, 9), expect.closeTo(-Math.LN2, 9)]);
  });

  it('logprobs refuse NaN', () => {
    expect(() => tokenLogprob(Float32Array.from([0, Number.NaN]), 0, 1)).toThrow(coded('runtime_failed'));
  });
});
