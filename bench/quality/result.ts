/** What an evaluation has found: every answer with its scores, and the figures of each arm. */
import type { Estimate } from '../../training/metrics/intervals.ts';
import type { Rates } from '../../training/metrics/rates.ts';
import type { GateMeasure } from './command.ts';
import type { ArmSpec } from './prompts.ts';
import type { Survey } from './samples.ts';

/** Scores of one completion; each is 0 or 1, or from 0 to 1. */
export interface Scores {
  /** By the paper's definition. */
  readonly exactMatch: number;
  readonly editSimilarity: number;
  /** By the definition of the authors' code. */
  readonly authorsExactMatch: number;
  readonly authorsEditSimilarity: number;
  /** CrossCodeEval's, of one statement: text, and names. */
  readonly statementMatch: number;
  readonly statementSimilarity: number;
  readonly nameMatch: number;
  readonly nameF1: number;
}
export type ScoreName = keyof Scores;

export interface PromptChunk {
  readonly path: string;
  readonly startLine: number;
  readonly endLine: number;
  readonly score: number;
  /** How it stood in a mixed prompt; undefined in others, where all stand alike. */
  readonly form?: 'soft' | 'text' | undefined;
}

/** One arm's answer to one sample. */
export interface ArmAnswer {
  /** All that the model wrote. */
  readonly completion: string;
  /** The part that is scored: as many filled lines as the target has. */
  readonly text: string;
  readonly scores: Scores;
  /** Mean over the target's tokens of -ln p, with the target as the completion. */
  readonly ce: number;
  readonly targetTokens: number;
  readonly promptTokens: number;
  readonly softTokens: number;
  readonly outputTokens: number;
  readonly ttftMs: number;
  /** null for a completion of one token. */
  readonly tpotMs: number | null;
  /** Those that stood in the prompt, in its order: soft tokens before text, each best first. */
  readonly chunks: readonly PromptChunk[];
  /** The tokens of context that a rewriter made, as text; null for other arms. */
  readonly rewritten: string | null;
  /** Why context is missing in part or whole; null where it is not. */
  readonly degraded: string | null;
}

export interface SampleResult {
  readonly id: string;
  /** File and line of the benchmark. */
  readonly name: string;
  readonly path: string;
  /** The last lines before the gap and the first after it. */
  readonly before: string;
  readonly after: string;
  readonly target: string;
  /** Chunks that the benchmark gave, and that the system made of them. */
  readonly given: number;
  readonly indexed: number;
  /** Texts of the chunks that stood in any prompt, by {@link chunkKey}. */
  readonly chunks: Readonly<Record<string, string>>;
  /** By the arm's name. */
  readonly answers: Readonly<Record<string, ArmAnswer>>;
}

export const chunkKey = ({ path, startLine, endLine }: Omit<PromptChunk, 'score' | 'form'>) =>
  `${path}:${startLine}-${endLine}`;

export interface ArmFigures {
  readonly arm: string;
  /** Means of what stood in prompts. */
  readonly promptTokens: number;
  readonly softTokens: number;
  readonly chunks: number;
  readonly scores: Readonly<Record<ScoreName, Estimate>>;
  /** Of the corpus, from 0 to 1. */
  readonly codeBleu: Estimate;
  readonly ce: Estimate;
  /** Medians in ms, with the bounds of their 95 % intervals; null where no completion has more than one token. */
  readonly ttft: Median;
  readonly tpot: Median | null;
  /** Against the arm without context; null where that was not evaluated, and for itself. */
  readonly rates: Rates | null;
  /** The share of all samples that is right without context and wrong with it; null as `rates`. */
  readonly harmful: number | null;
  /** How many answers lacked context, by the reason. */
  readonly degraded: Readonly<Record<string, number>>;
}

export interface Median {
  readonly median: number;
  readonly low: number;
  readonly high: number;
}

/** The first arm less the second, sample by sample. */
export interface Comparison {
  readonly arm: string;
  readonly against: string;
  readonly exactMatch: Estimate;
  /** McNemar's exact test. */
  readonly exactMatchP: number;
  readonly editSimilarity: Estimate;
  /** The test of random signs, as that of `ce`. */
  readonly editSimilarityP: number;
  readonly ce: Estimate;
  readonly ceP: number;
}

/** One form of context: its quality, and its time to first token. */
export interface Rung {
  readonly model: string;
  readonly arm: string;
  /** Soft tokens that the bundle makes of a chunk. */
  readonly softPerChunk: number;
  /** Means of what stood in prompts. */
  readonly promptTokens: number;
  readonly softTokens: number;
  readonly exactMatch: Estimate;
  readonly editSimilarity: Estimate;
  readonly ce: Estimate;
  readonly ttft: Median;
  /**
   * Its median as a multiple of that without context, of the same run and so under the same load; undefined
   * without one, and in earlier artifacts.
   */
  readonly ttftOverOff?: number | undefined;
  /** Share of text's gain in edit similarity over no context, of the same run; null where text gains nothing. */
  readonly recovered: number | null;
  /** The same in cross-entropy; null where a gain of text is not shown, and a bare share in earlier artifacts. */
  readonly recoveredCe: Estimate | number | null;
}

/** The comparison that decides whether one arm is better than another; `verdictOf` says how. */
export interface Gate {
  readonly arm: string;
  readonly against: string;
  /** undefined in artifacts from before there was a choice: the mean of exact match and edit similarity. */
  readonly by?: GateMeasure;
  /** By that measure, the first arm less the second. */
  readonly difference: Estimate;
}

export interface QualityResult {
  readonly model: string;
  /** Name of the network that encodes chunks; null where the bundle has none. */
  readonly encoder: string | null;
  /** Soft tokens that the bundle makes of a chunk; earlier artifacts do not say, and it is 1. */
  readonly softPerChunk?: number;
  /** The model of another server that made the summaries. */
  readonly summarizerModel?: string;
  /** Rungs of earlier runs on the same samples. */
  readonly beside?: readonly Rung[];
  /** Answers that were not cut to one statement, because the code before them takes too long to parse. */
  readonly unparsed?: number;
  /** Name of the benchmark's file or folder. */
  readonly benchmark: string;
  readonly survey: Survey;
  readonly arms: readonly ArmSpec[];
  readonly codeBleuVariant: string;
  readonly figures: readonly ArmFigures[];
  readonly comparisons: readonly Comparison[];
  readonly gate: Gate | null;
  readonly samples: readonly SampleResult[];
}
