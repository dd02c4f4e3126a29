/** The report of `llavacode evaluate`: the paper's tables of quality with our rows, and three charts. */
import type { EChartsOption } from 'echarts';
import type { Estimate } from '../../training/metrics/intervals.ts';
import type { Artifact } from '../report/artifact.ts';
import { axes, type Chart } from '../report/chart.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench } from '../report/report.ts';
import { ladderCharts, ladderTable, sharePercent, timeNotes } from './ladder.ts';
import { ceGain, ceShare, recovered, savingKept, verdictOf } from './measure.ts';
import type { Comparison, Gate, Median, QualityResult } from './result.ts';

const DEFINITIONS = {
  EM: 'share of completions that equal the target but for white space at both ends, after a cut to its filled lines',
  ES: 'mean of 1 - Levenshtein distance / length of the longer text, in characters',
  "authors' EM, ES": "the same as the authors' code computes them: tokens instead of characters, two empty texts are 0",
  'statement EM, ES': "CrossCodeEval's: the completion cut to one statement, without comments",
  'identifier EM, F1': "CrossCodeEval's: the names of that statement, in order, and as sets",
  CodeBLEU: 'of the whole corpus; the variant is named beside the table',
  CE: "mean over samples of the mean -ln p of the target's tokens, with the target as the completion",
  interval: 'in brackets: 95 % by 2,000 bootstrap resamples of the samples (CodeBLEU: 500)',
  'p (EM), p (ES, CE)': "McNemar's exact test; test of random signs over the differences of the samples",
  resilience: 'of the samples that are right without context, the share that is right with it',
  boost: 'of the samples that are wrong without context, the share that is right with it',
  harmful: 'share of all samples that is right without context and wrong with it',
  ladder: 'arms of several runs on the same samples, with the same budgets',
  'TTFT / off': 'median TTFT as a multiple of that of the arm off, which the same run measured under the same load',
  'recovered (EM), (ES), (CE)':
    "share of text's gain over no context that the arm has; in CE with its interval, and only where text's gain is shown",
  'saving kept': 'share of the median TTFT which text takes more than no context that the arm does not take',
  goals: "share of text's gain in CE that the arm has: reached or missed where all of its interval is, not shown else",
  gate: 'better or worse where the interval of the difference does not hold 0, not shown else',
  TTFT: 'median ms from sending the request to the first token, one request at a time',
  TPOT: 'median ms: (last token - first token) / (output tokens - 1)',
};

/** How the paper's tables call our arms. */
const PAPER_NAMES: Readonly<Record<string, string>> = {
  off: 'w/o CFC',
  text: 'w/ CFC',
  mixed: 'LlavaCode, best chunks as text',
  compressed: 'LlavaCode',
  'compressed-files': 'LlavaCode with files',
  pruned: 'Context Pruning',
  summary: 'Context Summarization',
  typed: 'Type-aware pruning',
  zip: 'CodePromptZip',
  'given-pruned': "Context Pruning (benchmark's)",
  'given-summary': "Context Summarization (benchmark's)",
};

const RETRIEVER_NAMES: Readonly<Record<string, string>> = { none: 'No CFC', bm25: 'BM25', jaccard: 'Jaccard' };

const paperName = (arm: string) => {
  const [bare = arm, retriever] = arm.split(' ', 2);
  return `${PAPER_NAMES[bare] ?? bare}${retriever ? ` ${retriever}` : ''}`;
};

/** In percent, with its interval. */
const points = ({ mean, low, high }: Estimate) =>
  `${(100 * mean).toFixed(2)} [${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]`;
const signed = (value: number, digits: number) => `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(digits)}`;
const change = ({ mean, low, high }: Estimate, scale: number, digits: number) =>
  `${signed(scale * mean, digits)} [${signed(scale * low, digits)}, ${signed(scale * high, digits)}]`;
const nats = ({ mean, low, high }: Estimate) => `${mean.toFixed(3)} [${low.toFixed(3)}, ${high.toFixed(3)}]`;
const probability = (p: number) => (p < 0.001 ? '< 0.001' : p.toFixed(3));
const milliseconds = (value: Median | null) =>
  value === null ? '—' : `${figure(value.median)} [${figure(value.low)}, ${figure(value.high)}]`;

/** Table 2 of the paper, whose columns are also those of its Table 5. */
function tableTwo({ benchmark, figures }: QualityResult): string {
  const rows = figures.map(({ arm, promptTokens, scores, codeBleu }, i) => [
    i === 0 ? benchmark : '',
    paperName(arm),
    promptTokens.toFixed(0),
    points(scores.exactMatch),
    points(scores.editSimilarity),
    points(codeBleu),
  ]);
  const head = ['Benchmark', 'Model', 'Seq Length', 'EM ↑', 'ES ↑', 'CodeBLEU ↑'];
  return table(head, rows, ['left', 'left']);
}

/** Table 12 of the paper: retrievers, each with its chunks as text; undefined where one alone was evaluated. */
function tableTwelve({ arms, figures, encoder }: QualityResult): string | undefined {
  const retrieving = arms.filter(({ arm }) => arm === 'text' || arm === 'off');
  if (new Set(retrieving.map(({ retriever }) => retriever)).size < 3) return undefined;
  const rows = retrieving.map(({ name, retriever }) => {
    const { scores } = figures.find(({ arm }) => arm === name)!;
    const by = retriever === 'dense' ? `dense (${encoder})` : (RETRIEVER_NAMES[retriever ?? 'none'] ?? retriever!);
    return [name === 'off' ? 'No CFC' : by, points(scores.exactMatch), points(scores.editSimilarity)];
  });
  return table(['Method', 'EM', 'ES'], rows);
}

function otherScores({ figures }: QualityResult): string {
  const head = [
    'arm',
    "authors' EM",
    "authors' ES",
    'statement EM',
    'statement ES',
    'identifier EM',
    'identifier F1',
    'CE',
  ];
  const rows = figures.map(({ arm, scores, ce }) => [
    arm,
    points(scores.authorsExactMatch),
    points(scores.authorsEditSimilarity),
    points(scores.statementMatch),
    points(scores.statementSimilarity),
    points(scores.nameMatch),
    points(scores.nameF1),
    nats(ce),
  ]);
  return table(head, rows);
}

function comparisonTable(comparisons: readonly Comparison[]): string {
  const rows = comparisons.map((pair) => [
    `${pair.arm} − ${pair.against}`,
    change(pair.exactMatch, 100, 2),
    probability(pair.exactMatchP),
    change(pair.editSimilarity, 100, 2),
    probability(pair.editSimilarityP),
    change(pair.ce, 1, 3),
    probability(pair.ceP),
  ]);
  return table(['difference', 'EM', 'p', 'ES', 'p', 'CE', 'p'], rows);
}

function effects({ figures, samples }: QualityResult): string {
  const rows = figures.map((arm) => {
    const isCompared = arm.arm !== 'off' && arm.arm !== 'text';
    const share = (value: number | null) => (isCompared && value !== null ? percent(value) : '—');
    return [
      arm.arm,
      arm.chunks.toFixed(1),
      arm.softTokens.toFixed(1),
      arm.rates === null ? '—' : `${percent(arm.rates.resilience ?? undefined, 1)} of ${arm.rates.rightWithout}`,
      arm.rates === null ? '—' : `${percent(arm.rates.boost ?? undefined, 1)} of ${arm.rates.wrongWithout}`,
      percent(arm.harmful ?? undefined, 1),
      share(recovered(figures, arm.arm, 'exactMatch')),
      share(recovered(figures, arm.arm, 'editSimilarity')),
      isCompared ? sharePercent(ceShare(samples, arm.arm)) : '—',
      share(savingKept(figures, arm.arm)),
      milliseconds(arm.ttft),
      milliseconds(arm.tpot),
    ];
  });
  const head = [
    'arm',
    'chunks',
    'soft tokens',
    'resilience',
    'boost',
    'harmful',
    'recovered (EM)',
    'recovered (ES)',
    'recovered (CE)',
    'saving kept',
    'TTFT (ms)',
    'TPOT (ms)',
  ];
  return table(head, rows);
}

/**
 * What this project wants of soft tokens: shares of text's gain, which is 34 % of it in EM in the paper's Table 1, and
 * of its saving. The gain is counted in cross-entropy, because a few hundred samples hold too few right lines to tell
 * arms apart by them. A goal is reached or missed only where the whole interval is.
 */
const GOALS: Readonly<Record<string, number>> = { compressed: 0.6, mixed: 0.85 };
const SAVING_GOAL = 0.8;

function goals({ figures, samples }: QualityResult): string[] {
  const gain = ceGain(samples, 'text', 'off');
  if (gain === undefined) return [];
  const said = Object.entries(GOALS).flatMap(([arm, goal]) => {
    if (!figures.some((each) => each.arm === arm)) return [];
    const [share, saving] = [ceShare(samples, arm), savingKept(figures, arm)];
    const parts = [
      share === undefined
        ? ''
        : `has ${sharePercent(share)} of the gain (goal ${percent(goal)}: ${judged(share, goal)})`,
      saving === null
        ? ''
        : `saves ${percent(saving)} of the cost (goal ${percent(SAVING_GOAL)}: ${reached(saving >= SAVING_GOAL)})`,
    ];
    const spoken = parts.filter((part) => part !== '').join(', and ');
    return spoken === '' ? [] : [`${arm} ${spoken}.`];
  });
  const ofText =
    gain.low > 0
      ? `text lowers CE by ${nats(gain)} nats.`
      : `a gain of text is not shown (it lowers CE by ${change(gain, 1, 3)} nats), so there is nothing to share.`;
  const name = "Goals, as shares of text's gain in CE and of its cost in TTFT:";
  return [[name, ofText, ...said].join(' ')];
}

const reached = (isReached: boolean) => (isReached ? 'reached' : 'missed');
function judged({ low, high }: Estimate, goal: number): string {
  // Soft tokens are made of the chunks that text has: more than it cannot be what they say of them.
  if (low > 1) return 'reached, by more than text itself: form rather than context may explain it';
  return low < goal && high >= goal ? 'not shown' : reached(low >= goal);
}

/** What a reader must know of the samples, so that nothing is left out silently. */
function notes(result: QualityResult): string {
  const { survey, codeBleuVariant, figures, samples, model, encoder, summarizerModel, unparsed = 0 } = result;
  const { format, language, taken, unread, repeatedIds, withoutChunks, digest } = survey;
  const cut = samples.filter(({ given, indexed }) => given !== indexed).length;
  const lacking = figures.flatMap(({ arm, degraded }) =>
    Object.entries(degraded).map(([reason, count]) => `${count} × ${reason} in ${arm}`),
  );
  const unreadFields = Object.entries(unread).map(([field, count]) => `${field} (${count})`);
  const said = [
    `${taken} of ${survey.samples} samples of ${language} in the format ${format}, SHA-256 ${digest.slice(0, 12)}; ` +
      `model ${model}, encoder ${encoder ?? 'none'}; CodeBLEU of ${codeBleuVariant === 'pip' ? 'PyPI' : 'CodeXGLUE'}`,
    summarizerModel === undefined ? '' : `Summaries by ${summarizerModel}`,
    unreadFields.length > 0 ? `Fields that are not read: ${unreadFields.join(', ')}` : '',
    repeatedIds > 0 ? `${repeatedIds} samples have the task id of an earlier one` : '',
    withoutChunks > 0 && format !== 'repoeval' ? `${withoutChunks} samples of the benchmark have no chunks` : '',
    cut > 0 ? `The system made other chunks than the benchmark gives of ${cut} samples` : '',
    unparsed > 0
      ? `${unparsed} answers may not be cut to one statement: the code before them takes too long to parse`
      : '',
    ...timeNotes(result),
    lacking.length > 0 ? `Answers that lacked context: ${lacking.join(', ')}` : '',
  ];
  return said
    .filter((note) => note !== '')
    .map((note) => `- ${note}.`)
    .join('\n');
}

/** What decides a gate, as tables call it. */
const GATE_NAMES = { ce: 'CE', es: 'ES', em: 'EM' } as const;

export function gateText(gate: Gate): string {
  const { arm, against, by, difference } = gate;
  const verdict = verdictOf(gate);
  const is = verdict === 'not shown' ? 'is not shown to be better' : `is ${verdict}`;
  const what = by === undefined ? 'the mean of EM and ES' : GATE_NAMES[by];
  const differs =
    by === 'ce' ? `${change(difference, 1, 3)} nats (lower is better)` : `${change(difference, 100, 2)} points`;
  const remedy = verdict === 'not shown' ? '; the interval holds 0, and more samples make it narrower' : '';
  return `${arm} ${is} than ${against}: ${what} differs by ${differs}${remedy}`;
}

function charts(result: QualityResult): Chart[] {
  const { figures } = result;
  const bars: EChartsOption = axes('Quality by arm', '', 'percent', {
    xAxis: { type: 'category', data: figures.map(({ arm }) => arm) },
    series: [
      { name: 'EM', type: 'bar', data: figures.map(({ scores }) => 100 * scores.exactMatch.mean) },
      { name: 'ES', type: 'bar', data: figures.map(({ scores }) => 100 * scores.editSimilarity.mean) },
      { name: 'CodeBLEU', type: 'bar', data: figures.map(({ codeBleu }) => 100 * codeBleu.mean) },
    ],
  });
  return [{ name: 'quality', option: bars }, ...ladderCharts(result)];
}

export const QUALITY: Bench<QualityResult> = {
  name: 'evaluate',
  title: 'Quality of completions',
  definitions: DEFINITIONS,
  report: ({ result }: Pick<Artifact<QualityResult>, 'result'>) => {
    const retrievers = tableTwelve(result);
    const ladder = ladderTable(result);
    const markdown = [
      'As Table 2 of the paper; EM, ES and CodeBLEU in percent, Seq Length in tokens of prompts.',
      tableTwo(result),
      ...(retrievers === undefined ? [] : ['As Table 12 of the paper, with chunks as text.', retrievers]),
      otherScores(result),
      ...(result.comparisons.length === 0
        ? []
        : ['Differences, sample by sample.', comparisonTable(result.comparisons)]),
      effects(result),
      ...goals(result),
      ...(ladder === undefined ? [] : ['The ladder: this run, and earlier ones on the same samples.', ladder]),
      notes(result),
      ...(result.gate === null ? [] : [`Gate: ${gateText(result.gate)}.`]),
    ].join('\n\n');
    return { markdown, charts: charts(result) };
  },
  headline: ({ figures }) =>
    figures.map(({ arm, scores }) => `${arm} ES ${(100 * scores.editSimilarity.mean).toFixed(1)}`).join(', '),
};
