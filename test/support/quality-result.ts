/** A small result of `llavacode evaluate`: four samples in three arms, of which each is an example of something. */
import { comparisonsOf, figuresOf, gateOf } from '../../bench/quality/measure.ts';
import type { ArmAnswer, QualityResult, SampleResult } from '../../bench/quality/result.ts';

const ARMS = ['off', 'text', 'compressed'] as const;
/** Which arms are right, sample by sample: context helps, harms, changes nothing, helps nobody. */
const RIGHT = [
  [0, 1, 1],
  [1, 0, 1],
  [1, 1, 1],
  [0, 0, 0],
] as const;

function answer(isRight: number, arm: number, sample: number): ArmAnswer {
  const similarity = isRight === 1 ? 1 : 0.25;
  const chunk = { path: 'money.py', startLine: 1, endLine: 5, score: 0.5 };
  return {
    completion: isRight === 1 ? 'target()\nmore' : '<script>alert(1)</script>',
    text: isRight === 1 ? 'target()' : '<script>alert(1)</script>',
    scores: {
      exactMatch: isRight,
      editSimilarity: similarity,
      authorsExactMatch: isRight,
      authorsEditSimilarity: similarity,
      statementMatch: isRight,
      statementSimilarity: similarity,
      nameMatch: isRight,
      nameF1: similarity,
    },
    ce: 2 - isRight,
    targetTokens: 4,
    promptTokens: 2000 + [0, 500, 10][arm]!,
    softTokens: arm === 2 ? 10 : 0,
    outputTokens: 5,
    ttftMs: 100 + 50 * arm + sample,
    tpotMs: 10,
    chunks: arm === 0 ? [] : [chunk],
    rewritten: null,
    degraded: sample === 3 && arm === 1 ? 'over_budget' : null,
  };
}

const COUNTS = {
  ngrams: { orders: [{ matched: 1, all: 2 }], words: [2, 2] as const },
  weightedNgrams: { orders: [{ matched: 1, all: 2 }], words: [2, 2] as const },
  syntax: { matched: 1, all: 2 },
  dataFlow: { matched: 1, all: 2 },
};
const CODE_BLEU = { score: () => ({ codeBleu: 0.5, ngrams: 0.5, weightedNgrams: 0.5, syntax: 0.5, dataFlow: 0.5 }) };

export function qualityResult(): QualityResult {
  const samples = RIGHT.map(
    (rights, i): SampleResult => ({
      id: `shop/${i}`,
      name: `bench.jsonl:${i + 1}`,
      path: 'cart.py',
      before: 'def f():\n    ',
      after: '\n',
      target: 'target()',
      given: 2,
      indexed: i === 2 ? 3 : 2,
      chunks: { 'money.py:1-5': 'def round_price(price):' },
      answers: Object.fromEntries(ARMS.map((arm, j) => [arm, answer(rights[j]!, j, i)])),
    }),
  );
  const counts = samples.map(() => COUNTS);
  return {
    model: 'tiny-coder',
    encoder: 'tiny-encoder',
    benchmark: 'bench.jsonl',
    survey: {
      format: 'cceval',
      language: 'python',
      digest: 'd'.repeat(64),
      samples: 8,
      longestTarget: 4,
      taken: 4,
      unread: { note: 3 },
      repeatedIds: 1,
      withoutChunks: 2,
    },
    arms: ARMS.map((arm) => ({ name: arm, arm, retriever: arm === 'off' ? undefined : 'jaccard' })),
    codeBleuVariant: 'codexglue',
    figures: ARMS.map((arm) => figuresOf(arm, samples, counts, CODE_BLEU)),
    comparisons: comparisonsOf(ARMS, samples),
    gate: gateOf('compressed', 'off', 'ce', samples),
    samples,
  };
}
