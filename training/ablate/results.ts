/** The figures of an ablation from the judgements of its rows, beside the paper's, and what differs from the paper. */
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Judgement } from '../evaluate/judge.ts';
import type { EvaluationInputs } from '../evaluate/kept.ts';
import { type Estimate, estimate, estimateDifference } from '../metrics/intervals.ts';
import { type Rates, ratesOf } from '../metrics/rates.ts';
import type { TrainOptions } from '../run/settings.ts';
import type { Row } from './rows.ts';

export interface JudgedRow {
  readonly row: Row;
  readonly inputs: EvaluationInputs;
  /** Trainable parameters; undefined for a row without a projector. */
  readonly parameters?: number;
  readonly judgements: readonly Judgement[];
}

/** Figures of one row: CE in nats a token, EM and ES in percent, each with its 95 % interval. */
export interface RowFigures {
  readonly id: string;
  readonly title: string;
  readonly weights: TrainOptions['weights'] | undefined;
  readonly parameters: number | undefined;
  readonly ce: Estimate;
  readonly em: Estimate;
  readonly es: Estimate;
  /** EM and ES by the definition of the authors' code. */
  readonly authorsEm: Estimate;
  readonly authorsEs: Estimate;
  /**
   * Cross-entropy with the soft tokens of another sample's chunks, less that with its own: what soft tokens say of the
   * chunks. The rest of what they gain is form, which any soft tokens would give. Undefined for a row without a
   * projector, and for judgements of versions without it.
   */
  readonly ofChunks?: Estimate;
  /**
   * Mean cosine between the soft tokens of a sample, and between the embeddings of its chunks. Near 1 the projector has
   * collapsed. Undefined as {@link ofChunks} is, and where no sample has two.
   */
  readonly cosine?: Estimate;
  readonly cosineOfEmbeddings?: Estimate;
  /** Against the row without context, sample by sample; undefined where there is no such row, or it is this one. */
  readonly gain?: { readonly ce: Estimate; readonly em: Estimate; readonly es: Estimate; readonly rates: Rates };
  readonly paper: Row['paper'];
}

export interface AblationResults {
  readonly rows: readonly RowFigures[];
  /** In which ways the figures are not to be compared with the paper's. */
  readonly differs: readonly string[];
}

/** Numbers of samples. */
interface Counts {
  readonly samples: number;
  readonly judged: number;
}

type Figure = Exclude<keyof Judgement, 'text' | 'controlCe' | Alike>;
type Alike = 'cosine' | 'cosineOfEmbeddings';
const column = (judgements: readonly Judgement[], name: Figure) => judgements.map((judgement) => judgement[name]);
const percent = (judgements: readonly Judgement[], name: Figure) =>
  column(judgements, name).map((value) => 100 * value);

/** @throws ServingError config_invalid where rows were judged by different models or on different samples. */
export function resultsOf(
  judged: readonly JudgedRow[],
  options: Omit<TrainOptions, 'validation'>,
  counts: Counts,
): AblationResults {
  const [first] = judged;
  for (const { row, inputs } of judged) {
    if (inputs.model === first!.inputs.model && inputs.data === first!.inputs.data) continue;
    throw new ServingError(
      'config_invalid',
      `the rows ${first!.row.id} and ${row.id} were judged by different models or on different samples: remove the folder of one of them in ${options.to}/rows, and it is computed again`,
    );
  }
  const baseline = judged.find(({ row }) => row.arm === 'none');
  return {
    rows: judged.map((row) => figuresOf(row, row === baseline ? undefined : baseline)),
    differs: differences(options, counts),
  };
}

function figuresOf({ row, parameters, judgements }: JudgedRow, baseline: JudgedRow | undefined): RowFigures {
  return {
    id: row.id,
    title: row.title,
    weights: row.changes.weights,
    parameters,
    ce: estimate(column(judgements, 'ce')),
    em: estimate(percent(judgements, 'exactMatch')),
    es: estimate(percent(judgements, 'editSimilarity')),
    authorsEm: estimate(percent(judgements, 'authorsExactMatch')),
    authorsEs: estimate(percent(judgements, 'authorsEditSimilarity')),
    ofChunks: ofChunks(judgements),
    cosine: alike(judgements, 'cosine'),
    cosineOfEmbeddings: alike(judgements, 'cosineOfEmbeddings'),
    gain: baseline && gainOf(judgements, baseline.judgements),
    paper: row.paper,
  };
}

function ofChunks(judgements: readonly Judgement[]): Estimate | undefined {
  const controls = judgements.flatMap(({ controlCe }) => controlCe ?? []);
  if (controls.length < judgements.length) return undefined;
  return estimateDifference(controls, column(judgements, 'ce'));
}

function alike(judgements: readonly Judgement[], name: Alike): Estimate | undefined {
  const values = judgements.map((judgement) => judgement[name]);
  if (values.includes(undefined)) return undefined; // an earlier version judged some of them
  const found = values.flatMap((value) => value ?? []);
  return found.length === 0 ? undefined : estimate(found);
}

const gainOf = (judgements: readonly Judgement[], baseline: readonly Judgement[]) => ({
  ce: estimateDifference(column(judgements, 'ce'), column(baseline, 'ce')),
  em: estimateDifference(percent(judgements, 'exactMatch'), percent(baseline, 'exactMatch')),
  es: estimateDifference(percent(judgements, 'editSimilarity'), percent(baseline, 'editSimilarity')),
  rates: ratesOf(column(baseline, 'exactMatch'), column(judgements, 'exactMatch')),
});

/** What the paper trained with; it does not name the model of Tables 1 and 3, but these are the weights of its 1.5B. */
const PAPER = {
  model: 'Qwen2.5-Coder (by its weights of losses the one of 1.5B)',
  encoder: 'Qwen3-Embedding-0.6B, and UniXcoder in Table 3',
  samples: 150_000,
  steps: 6_600,
  batch: 66,
  promptTokens: 2_010,
  learningRate: 1e-3,
  judged: 4_300,
};

function differences(options: Omit<TrainOptions, 'validation'>, { samples, judged }: Counts): string[] {
  const { llm, encoder, steps, batch, promptTokens, learningRate } = options;
  const lines: [what: string, ours: string | number, theirs: string | number][] = [
    ['language model', llm, PAPER.model],
    ['encoder', encoder ?? llm, PAPER.encoder],
    ['training samples', samples, `about ${PAPER.samples}`],
    ['steps of the optimiser', steps, `about ${PAPER.steps}`],
    ['samples of a step', batch, PAPER.batch],
    ['tokens of a prompt, soft tokens included', promptTokens, PAPER.promptTokens],
    ['largest learning rate', learningRate, PAPER.learningRate],
    ['samples of the evaluation', judged, `about ${PAPER.judged}`],
  ];
  return lines
    .filter(([, ours, theirs]) => ours !== theirs)
    .map(([what, ours, theirs]) => `${what}: ${ours}; the paper: ${theirs}`);
}
