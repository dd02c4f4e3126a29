/**
 * The quality ladder: what context in one form or another gives, and what it costs in time to first token. Its rungs
 * are the arms of a run and, where `--beside` names them, those of earlier runs on the same samples: bundles with
 * another number of soft tokens per chunk, or other projectors.
 */
import type { EChartsOption } from 'echarts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import type { Estimate } from '../../training/metrics/intervals.ts';
import { readArtifact } from '../report/artifact.ts';
import { axes, type Chart, COLOURS } from '../report/chart.ts';
import { figure, percent, table } from '../report/markdown.ts';
import { type Arm, EVALUATE_COMMAND } from './command.ts';
import { ceShare, recovered } from './measure.ts';
import { isRewriter } from './prompts.ts';
import type { QualityResult, Rung } from './result.ts';
import type { Survey } from './samples.ts';

/** Arms whose prompts do not depend on what a run is compared in: one run's are enough. */
const COMMON: readonly string[] = ['off', 'text'];

/**
 * Settings that must be those of the new run: what its arms without context and with text depend on, since these stand
 * for all runs. What rungs are compared in, such as text chunks of a mixed prompt and soft tokens of files, may differ.
 */
const SAME = [
  ['promptTokens', '--prompt-tokens'],
  ['textTokens', '--text-tokens'],
  ['maxTokens', '--max-tokens'],
  ['topK', '--top-k'],
  ['context', '--context'],
  ['retrievers', '--retrievers'],
  ['promptOrder', '--prompt-order'],
] as const;
type Same = (typeof SAME)[number][0];

/** Rungs beyond the number of colours have the same ones with another symbol. */
const SYMBOLS = ['circle', 'diamond', 'triangle'] as const;

/** The rungs of one run, in the order of its arms. */
export function rungsOf({ model, softPerChunk = 1, figures, samples }: QualityResult): Rung[] {
  const off = figures.find(({ arm }) => arm === 'off');
  return figures.map(({ arm, promptTokens, softTokens, scores, ce, ttft }) => ({
    model,
    arm,
    softPerChunk,
    promptTokens,
    softTokens,
    exactMatch: scores.exactMatch,
    editSimilarity: scores.editSimilarity,
    ce,
    ttft,
    ttftOverOff: off && ttft.median / off.ttft.median,
    recovered: COMMON.includes(arm) ? null : recovered(figures, arm, 'editSimilarity'),
    recoveredCe: COMMON.includes(arm) ? null : (ceShare(samples, arm) ?? null),
  }));
}

/**
 * The rungs of earlier runs, without the arms that every run has. An artifact from before one of the options of
 * {@link SAME} existed has that option's default.
 * @param files artifacts
 * @param survey what the new run evaluates
 * @param options how it does
 * @throws ServingError config_invalid for an artifact of something else, of other samples, or with other settings of
 *   {@link SAME}; path_unusable.
 */
export async function rungsBeside(
  files: readonly string[],
  survey: Survey,
  options: Readonly<Record<Same, unknown>>,
): Promise<Rung[]> {
  const rungs: Rung[] = [];
  for (const file of files) {
    const { bench, result, settings } = await atPath(`--beside ${file}`, () => readArtifact<QualityResult>(file));
    if (bench !== 'evaluate') throw refused(file, `is an artifact of ${bench}, not of evaluate`);
    const { digest, taken } = result.survey;
    if (digest !== survey.digest || taken !== survey.taken) {
      const [its, own] = [result.survey, survey].map((of) => `${of.taken} samples of ${of.digest.slice(0, 12)}`);
      throw refused(file, `evaluates ${its}, and this run ${own}`);
    }
    for (const [name, flag] of SAME) {
      const its = String(settings[name] ?? EVALUATE_COMMAND.options[name].initial);
      const own = String(options[name]);
      if (its !== own)
        throw refused(file, `has ${flag} ${its}, and this run ${own}`, `give ${flag} ${its}, or leave it out`);
    }
    rungs.push(...rungsOf(result).filter(({ arm }) => !COMMON.includes(arm)));
  }
  return rungs;
}

const refused = (file: string, why: string, remedy = 'name artifacts of the same benchmark and --samples') =>
  new ServingError('config_invalid', `--beside ${file} ${why}: ${remedy}`);

const ladderOf = (result: QualityResult): Rung[] => [...rungsOf(result), ...(result.beside ?? [])];

/** A name that tells a rung from every other one of its ladder. */
function namesOf(rungs: readonly Rung[]): string[] {
  const models = new Set(rungs.map(({ model }) => model));
  return rungs.map(({ model, arm, softPerChunk }) => {
    if (COMMON.includes(arm)) return arm;
    const several = softPerChunk > 1 ? `, ${softPerChunk} per chunk` : '';
    return `${arm}${several}${models.size > 1 ? ` (${model})` : ''}`;
  });
}

/** Without the sign of what rounds to 0. */
const whole = (share: number) => percent(Math.round(100 * share) === 0 ? 0 : share);
/** A share with its interval, in percent; a dash where there is none. Earlier artifacts have no interval. */
export function sharePercent(share: Estimate | number | null | undefined): string {
  if (share === null || share === undefined) return '—';
  return typeof share === 'number' ? whole(share) : `${whole(share.mean)} [${whole(share.low)}, ${whole(share.high)}]`;
}

/** What a reader must know of the times of a ladder; '' for what does not apply. */
export function timeNotes(result: QualityResult): string[] {
  const rungs = ladderOf(result);
  const names = namesOf(rungs);
  const untimed = names.filter((_, i) => rungs[i]!.ttftOverOff === undefined);
  const rewritten = names.filter((_, i) => isRewriter(rungs[i]!.arm as Arm));
  return [
    untimed.length > 0 ? `In no chart against TTFT, because their runs have no arm off: ${untimed.join(', ')}` : '',
    rewritten.length > 0
      ? `No retrieval and no rewriting is in the TTFT of ${rewritten.join(', ')}, nor in what follows from it ` +
        '(TTFT / off, saving kept): the prompts of these arms are made before'
      : '',
  ];
}

const points = ({ mean, low, high }: Estimate) =>
  `${(100 * mean).toFixed(2)} [${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]`;

/** The table of a ladder; undefined where a run stands alone, whose other tables have all of it. */
export function ladderTable(result: QualityResult): string | undefined {
  if ((result.beside ?? []).length === 0) return undefined;
  const rungs = ladderOf(result);
  const rows = namesOf(rungs).map((name, i) => {
    const { promptTokens, softTokens, exactMatch, editSimilarity, ce, ttft, ttftOverOff, ...shares } = rungs[i]!;
    return [
      name,
      promptTokens.toFixed(0),
      softTokens.toFixed(1),
      points(exactMatch),
      points(editSimilarity),
      ce.mean.toFixed(3),
      ...[shares.recovered, shares.recoveredCe].map(sharePercent),
      `${figure(ttft.median)} [${figure(ttft.low)}, ${figure(ttft.high)}]`,
      ttftOverOff === undefined ? '—' : `${figure(ttftOverOff)} ×`,
    ];
  });
  const recovered = ['recovered (ES)', 'recovered (CE)'];
  return table(
    ['rung', 'prompt tokens', 'soft tokens', 'EM', 'ES', 'CE', ...recovered, 'TTFT (ms)', 'TTFT / off'],
    rows,
  );
}

/** What the rungs of a chart are compared by. */
interface Quality {
  readonly chart: string;
  readonly title: string;
  readonly axis: string;
  readonly of: (rung: Rung) => Estimate;
  readonly factor: number;
}

const SIMILARITY: Quality = {
  chart: 'quality-ttft',
  title: 'Edit similarity against relative TTFT',
  axis: 'ES (%)',
  of: ({ editSimilarity }) => editSimilarity,
  factor: 100,
};
/** A small model hardly ever writes the right line, and its cross-entropy still tells its contexts apart. */
const CROSS_ENTROPY: Quality = {
  chart: 'quality-ttft-ce',
  title: 'Cross-entropy of the target against relative TTFT (lower is better)',
  axis: 'CE (nats a token)',
  of: ({ ce }) => ce,
  factor: 1,
};

/**
 * Quality against TTFT, by two figures: a point for each rung, with the interval of its quality as a line. Runs are
 * made under different load, so the TTFT of each is told as a multiple of that without context in the same run. No
 * charts where no run has one without.
 */
export function ladderCharts(result: QualityResult): Chart[] {
  const isTimed = ladderOf(result).some(({ ttftOverOff }) => ttftOverOff !== undefined);
  return isTimed ? [SIMILARITY, CROSS_ENTROPY].map((quality) => ladderChart(result, quality)) : [];
}

/** The axis of time. */
const TIMES = 'median TTFT, as a multiple of that without context in the same run';

function ladderChart(result: QualityResult, { chart, title, axis, of, factor }: Quality): Chart {
  const rungs = ladderOf(result);
  const series = namesOf(rungs).flatMap((name, i) => {
    const { ttftOverOff: times } = rungs[i]!;
    if (times === undefined) return [];
    const { mean, low, high } = of(rungs[i]!);
    const at = (value: number) => [times, factor * value];
    const color = COLOURS[i % COLOURS.length]!;
    const symbol = SYMBOLS[Math.floor(i / COLOURS.length) % SYMBOLS.length]!;
    return [
      { name, type: 'scatter' as const, symbol, symbolSize: 14, itemStyle: { color }, data: [at(mean)] },
      {
        name,
        type: 'line' as const,
        symbol: 'none' as const,
        lineStyle: { color, width: 1.5 },
        data: [at(low), at(high)],
      },
    ];
  });
  const option: EChartsOption = axes(title, TIMES, axis, {
    xAxis: { type: 'value', name: TIMES, nameLocation: 'middle', nameGap: 28, scale: true },
    yAxis: { type: 'value', name: `${axis}, 95 % interval`, nameLocation: 'middle', nameGap: 48, scale: true },
    series,
  });
  return { name: chart, option };
}
