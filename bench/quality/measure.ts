/** The figures of arms and the comparisons between them, computed from the answers of all samples. */
import type { CodeBleu, CodeBleuCounts } from '../../training/metrics/code-bleu.ts';
import { type Estimate, estimate, estimateDifference, estimateOfCorpus } from '../../training/metrics/intervals.ts';
import { mcNemar, permutationTest } from '../../training/metrics/paired-tests.ts';
import { ratesOf } from '../../training/metrics/rates.ts';
import { mean, median, medianInterval } from '../measure/statistics.ts';
import type { GateMeasure } from './command.ts';
import type { ArmAnswer, ArmFigures, Comparison, Gate, Median, SampleResult, ScoreName } from './result.ts';

/** A corpus of thousands takes a millisecond to score. */
const CODE_BLEU_RESAMPLES = 500;

const OFF = 'off';

const SCORES = [
  'exactMatch',
  'editSimilarity',
  'authorsExactMatch',
  'authorsEditSimilarity',
  'statementMatch',
  'statementSimilarity',
  'nameMatch',
  'nameF1',
] as const satisfies readonly ScoreName[];

const answersOf = (samples: readonly SampleResult[], arm: string): ArmAnswer[] =>
  samples.map(({ answers }) => answers[arm]!);
const scoresOf = (samples: readonly SampleResult[], arm: string, score: ScoreName): number[] =>
  answersOf(samples, arm).map(({ scores }) => scores[score]);

/**
 * @param samples at least one; each has an answer of every arm
 * @param counts what CodeBLEU counts of the arm's answers, in the order of the samples
 */
export function figuresOf(
  arm: string,
  samples: readonly SampleResult[],
  counts: readonly CodeBleuCounts[],
  codeBleu: Pick<CodeBleu, 'score'>,
): ArmFigures {
  const answers = answersOf(samples, arm);
  const exact = scoresOf(samples, arm, 'exactMatch');
  const without = arm === OFF || !samples[0]!.answers[OFF] ? undefined : scoresOf(samples, OFF, 'exactMatch');
  const rates = without === undefined ? null : ratesOf(without, exact);
  const tpots = answers.flatMap(({ tpotMs }) => (tpotMs === null ? [] : [tpotMs]));
  const degraded = new Map<string, number>();
  for (const { degraded: reason } of answers)
    if (reason !== null) degraded.set(reason, (degraded.get(reason) ?? 0) + 1);
  return {
    arm,
    promptTokens: mean(answers.map(({ promptTokens }) => promptTokens)),
    softTokens: mean(answers.map(({ softTokens }) => softTokens)),
    chunks: mean(answers.map(({ chunks }) => chunks.length)),
    scores: Object.fromEntries(
      SCORES.map((score) => [score, estimate(scoresOf(samples, arm, score))]),
    ) as ArmFigures['scores'],
    codeBleu: estimateOfCorpus(counts, (corpus) => codeBleu.score(corpus).codeBleu, CODE_BLEU_RESAMPLES),
    ce: estimate(answers.map(({ ce }) => ce)),
    ttft: medianOf(answers.map(({ ttftMs }) => ttftMs)),
    tpot: tpots.length === 0 ? null : medianOf(tpots),
    rates,
    harmful: rates && 1 - rates.noDegradation,
    degraded: Object.fromEntries([...degraded].sort(([a], [b]) => a.localeCompare(b))),
  };
}

function medianOf(values: readonly number[]): Median {
  const { low, high } = medianInterval(values);
  return { median: median(values), low, high };
}

/** Every arm against every one before it. */
export function comparisonsOf(arms: readonly string[], samples: readonly SampleResult[]): Comparison[] {
  return arms.flatMap((arm, i) => arms.slice(0, i).map((against) => comparison(arm, against, samples)));
}

function comparison(arm: string, against: string, samples: readonly SampleResult[]): Comparison {
  const both = (figure: (name: string) => number[]) => [figure(arm), figure(against)] as const;
  const exact = both((name) => scoresOf(samples, name, 'exactMatch'));
  const similarity = both((name) => scoresOf(samples, name, 'editSimilarity'));
  const ce = both((name) => answersOf(samples, name).map((answer) => answer.ce));
  return {
    arm,
    against,
    exactMatch: estimateDifference(...exact),
    exactMatchP: mcNemar(...exact),
    editSimilarity: estimateDifference(...similarity),
    editSimilarityP: permutationTest(...similarity),
    ce: estimateDifference(...ce),
    ceP: permutationTest(...ce),
  };
}

/** What each measure of a gate is, sample by sample. */
const GATE_FIGURES: Readonly<Record<GateMeasure, (answer: ArmAnswer) => number>> = {
  ce: ({ ce }) => ce,
  es: ({ scores }) => scores.editSimilarity,
  em: ({ scores }) => scores.exactMatch,
};

export function gateOf(arm: string, against: string, by: GateMeasure, samples: readonly SampleResult[]): Gate {
  const values = (name: string) => answersOf(samples, name).map(GATE_FIGURES[by]);
  return { arm, against, by, difference: estimateDifference(values(arm), values(against)) };
}

/** Whether a gate's arm is better or worse than the other one: neither is shown where the interval holds 0. */
export function verdictOf({ by, difference }: Pick<Gate, 'by' | 'difference'>): 'better' | 'worse' | 'not shown' {
  // A lower cross-entropy is better.
  const [low, high] = by === 'ce' ? [-difference.high, -difference.low] : [difference.low, difference.high];
  if (low > 0) return 'better';
  return high < 0 ? 'worse' : 'not shown';
}

/** By how much the cross-entropy of one arm is lower than another's; undefined where one was not evaluated. */
export function ceGain(samples: readonly SampleResult[], arm: string, against: string): Estimate | undefined {
  const [answers] = samples.map((sample) => sample.answers);
  if (answers?.[arm] === undefined || answers[against] === undefined) return undefined;
  return gateOf(against, arm, 'ce', samples).difference;
}

/**
 * The share of text's gain in cross-entropy over no context that an arm has, with its interval; undefined where one of
 * the three was not evaluated, or where text's own gain has an interval that holds 0: there is nothing to share then.
 */
export function ceShare(samples: readonly SampleResult[], arm: string): Estimate | undefined {
  const [own, text] = [ceGain(samples, arm, OFF), ceGain(samples, 'text', OFF)];
  if (own === undefined || text === undefined || text.low <= 0) return undefined;
  const gained = (taken: readonly SampleResult[], name: string) =>
    mean(taken.map(({ answers }) => answers[OFF]!.ce - answers[name]!.ce));
  return estimateOfCorpus(samples, (taken) => gained(taken, arm) / gained(taken, 'text'));
}

/** The arm and the two that its gain is measured between, by one figure; undefined where one was not evaluated. */
function threeOf(figures: readonly ArmFigures[], arm: string, figure: (arm: ArmFigures) => number) {
  const of = (name: string) => figures.find((each) => each.arm === name);
  const [without, text, own] = [of(OFF), of('text'), of(arm)];
  if (without === undefined || text === undefined || own === undefined) return undefined;
  return { without: figure(without), text: figure(text), own: figure(own) };
}

/**
 * The share of the gain of context as text that another arm has as well, by a score: 1 where it is as good as text, 0
 * where it is as good as no context; null where text gains nothing. {@link ceShare} is that of the cross-entropy.
 */
export function recovered(figures: readonly ArmFigures[], arm: string, score: ScoreName): number | null {
  const found = threeOf(figures, arm, ({ scores }) => scores[score].mean);
  if (found === undefined || found.text <= found.without) return null;
  return (found.own - found.without) / (found.text - found.without);
}

/**
 * The share of the median TTFT which text takes more than no context that another arm does not take: 1 where it is as
 * fast as without context, 0 where it is as slow as text; null where text takes no more.
 */
export function savingKept(figures: readonly ArmFigures[], arm: string): number | null {
  const found = threeOf(figures, arm, ({ ttft }) => ttft.median);
  if (found === undefined || found.text <= found.without) return null;
  return (found.text - found.own) / (found.text - found.without);
}
