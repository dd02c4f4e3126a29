/**
 * CodeBLEU is that of the goldens, and that of the package on PyPI for 200 pairs of five languages. For CodeXGLUE's
 * variant the package was patched.
 */
import { afterAll, describe, expect, test } from 'vitest';
import { CODE_BLEU_VARIANTS, CodeBleu, type CodeBleuVariant } from '../../../training/metrics/code-bleu.ts';
import { SCORED_LANGUAGES, type ScoredLanguage } from '../../../training/metrics/keywords.ts';
import { evaluationCases, readEvaluationGoldens } from '../../support/evaluation-goldens.ts';

interface Expected {
  readonly ngram: number;
  readonly weighted_ngram: number;
  readonly syntax: number;
  readonly syntax_matched: readonly [number, number];
  readonly dataflow: number | null;
  readonly dataflow_matched: readonly [number, number];
  readonly codebleu_codexglue: number;
  readonly codebleu_pip: number;
}
interface CodeBleuCase {
  readonly id: string;
  readonly prediction: string;
  readonly groundtruth: string;
  readonly expected: Expected & { readonly reference_flows: readonly unknown[] };
}

const loaded = new Map<string, CodeBleu>();
async function metric(language: ScoredLanguage, variant: CodeBleuVariant): Promise<CodeBleu> {
  const key = `${language} ${variant}`;
  if (!loaded.has(key)) loaded.set(key, await CodeBleu.load(language, variant));
  return loaded.get(key)!;
}
afterAll(() => {
  for (const found of loaded.values()) found.dispose();
});

const cases = evaluationCases<CodeBleuCase>('codebleu');

test('there are goldens of CodeBLEU', () => expect(cases).toHaveLength(10));

describe.each(CODE_BLEU_VARIANTS)('%s', (variant) => {
  test.each(cases)(`golden $id has the scores of ${variant}`, async ({ prediction, groundtruth, expected }) => {
    const bleu = await metric('python', variant);
    const counts = bleu.count(prediction, groundtruth);
    const scores = bleu.score([counts]);
    expect([counts.syntax.matched, counts.syntax.all]).toEqual(expected.syntax_matched);
    expect([counts.dataFlow.matched, counts.dataFlow.all]).toEqual(expected.dataflow_matched);
    expect(bleu.flowOf(groundtruth)).toEqual(expected.reference_flows);
    expect(scores.ngrams).toBeCloseTo(expected.ngram, 12);
    expect(scores.weightedNgrams).toBeCloseTo(expected.weighted_ngram, 12);
    expect(scores.syntax).toBeCloseTo(expected.syntax, 12);
    expect(scores.dataFlow).toBe(expected.dataflow);
    expect(scores.codeBleu).toBeCloseTo(expected[`codebleu_${variant}`], 12);
  });

  test(`${variant} sums the counts of a corpus before it divides`, async () => {
    const { corpus_codebleu: expected } = readEvaluationGoldens<{ corpus_codebleu: Expected }>('cases.json');
    const bleu = await metric('python', variant);
    const scores = bleu.score(cases.map(({ prediction, groundtruth }) => bleu.count(prediction, groundtruth)));
    expect(scores.ngrams).toBeCloseTo(expected.ngram, 12);
    expect(scores.weightedNgrams).toBeCloseTo(expected.weighted_ngram, 12);
    expect(scores.syntax).toBeCloseTo(expected.syntax, 12);
    expect(scores.dataFlow).toBeCloseTo(expected.dataflow!, 12);
    expect(scores.codeBleu).toBeCloseTo(expected[`codebleu_${variant}`], 12);
  });
});

/** CodeBLEU and its four parts: n-grams, weighted n-grams, syntax, data flow. */
type Scores = readonly [number, number, number, number, number];
interface Pair extends Readonly<Record<CodeBleuVariant, Scores>> {
  readonly language: ScoredLanguage;
  readonly prediction: string;
  readonly groundtruth: string;
}
const { pairs } = readEvaluationGoldens<{ pairs: Pair[] }>('codebleu-pairs.json');

test('there are 200 pairs, of all languages', () => {
  expect(pairs).toHaveLength(200);
  expect(new Set(pairs.map(({ language }) => language))).toEqual(new Set(SCORED_LANGUAGES));
});

test.each(CODE_BLEU_VARIANTS.flatMap((variant) => SCORED_LANGUAGES.map((language) => ({ variant, language }))))(
  'pairs in $language have the scores of $variant, by the package on PyPI, which is patched for codexglue',
  async ({ variant, language }) => {
    const bleu = await metric(language, variant);
    const differing = pairs.filter((pair) => {
      if (pair.language !== language) return false;
      const { codeBleu, ngrams, weightedNgrams, syntax, dataFlow } = bleu.score([
        bleu.count(pair.prediction, pair.groundtruth),
      ]);
      const found = [codeBleu, ngrams, weightedNgrams, syntax, dataFlow ?? 0];
      return found.some((score, i) => Math.abs(score - pair[variant][i]!) > 1e-12);
    });
    expect(differing).toEqual([]);
  },
);
