/** The report of `bench training`. */
import { median } from '../measure/statistics.ts';
import { figure, mebibytes, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import { type MeasuredTraining, nameOf, type TrainingResult } from './result.ts';

export const TRAINING: Bench<TrainingResult> = {
  name: 'training',
  title: 'Training a projector',
  definitions: {
    frozen:
      "the language model's weights: fp32; fp16 and int8, widened to 32-bit floats as they are multiplied by; w8a8, " +
      'weights and activations of 8 bits',
    losses: 'ce, cross-entropy of the target; reinforce, the log-probability of a rollout; joint, both in one pass',
    'samples/s': '1 / s of one pass: forward and backward through the frozen language model; median',
    'CPU s a sample': 'CPU time of all threads in one pass, median: other programs change it little',
    'least to most': 'smallest and largest CPU s of the passes: the noise of the median beside it',
    'cores busy': 'CPU s / s, median; fewer than --threads where other programs took the cores, or threads waited',
    'relative to fp32': 'CPU s a sample / that of fp32 with the same shape, prompt and losses',
    'relative to two': 'CPU s of a joint pass / the sum of those of a pass by ce and one by reinforce',
    'relative to PyTorch': 'CPU s a sample / that of PyTorch (row pytorch) in 32-bit floats, same shape and prompt',
    'peak, MiB': 'largest resident memory during the passes, with the mapped file of weights',
    'anonymous, MiB': 'memory after the last pass that no file backs',
    'load, s': 's to read or draw the weights, write the graph and open it',
  },
  report: ({ result }) => reportTraining(result),
  headline: ({ cells }) =>
    cells
      .filter(({ frozen }, i) => frozen === 'w8a8' || i === 0)
      .map((cell) => `${nameOf(cell)}: ${rate(cell)} samples/s`)
      .join('; '),
};

/** Samples per second, with two digits below 1: large shapes make one in minutes. */
function rate({ seconds }: MeasuredTraining): string {
  const value = 1 / median(seconds);
  return value < 1 ? value.toPrecision(2) : figure(value);
}

function reportTraining({ cells, left }: TrainingResult): Report {
  const cpu = ({ cpuSeconds }: MeasuredTraining) => median(cpuSeconds);
  const like = (cell: MeasuredTraining, wanted: Pick<MeasuredTraining, 'frozen' | 'losses'>) =>
    cells.find(({ shape, frozen, prompt, losses }) => {
      const isAlike = shape === cell.shape && prompt === cell.prompt;
      return isAlike && frozen === wanted.frozen && losses === wanted.losses;
    });
  const relative = (cell: MeasuredTraining, to: MeasuredTraining['frozen']) => {
    const base = like(cell, { frozen: to, losses: cell.losses });
    return base ? `${figure(cpu(cell) / cpu(base))} ×` : '—';
  };
  /** What a joint pass takes of two passes. */
  const relativeToTwo = (cell: MeasuredTraining) => {
    const [ce, reinforce] = [undefined, 'reinforce' as const].map((losses) => like(cell, { ...cell, losses }));
    return cell.losses === 'joint' && ce && reinforce ? `${figure(cpu(cell) / (cpu(ce) + cpu(reinforce)))} ×` : '—';
  };
  const hasLosses = cells.some(({ losses }) => losses !== undefined);
  const pytorch = cells.find(({ frozen }) => frozen === 'pytorch');
  const rows = cells.map((cell) => {
    const { seconds, cpuSeconds } = cell;
    return [
      cell.shape,
      cell.frozen,
      String(cell.prompt),
      ...(hasLosses ? [cell.losses ?? 'ce'] : []),
      rate(cell),
      figure(cpu(cell)),
      `${figure(Math.min(...cpuSeconds))} to ${figure(Math.max(...cpuSeconds))}`,
      figure(median(seconds.map((wall, i) => cpuSeconds[i]! / wall))),
      relative(cell, 'fp32'),
      ...(hasLosses ? [relativeToTwo(cell)] : []),
      ...(pytorch ? [relative(cell, 'pytorch')] : []),
      mebibytes(cell.peakBytes),
      mebibytes(cell.anonymousBytes),
      figure(cell.loadSeconds),
    ];
  });
  const head = [
    'shape',
    'frozen',
    'prompt',
    ...(hasLosses ? ['losses'] : []),
    'samples/s',
    'CPU s a sample',
    'least to most',
    'cores busy',
    'relative to fp32',
    ...(hasLosses ? ['relative to two'] : []),
    ...(pytorch ? ['relative to PyTorch'] : []),
    'peak, MiB',
    'anonymous, MiB',
    'load, s',
  ];
  const missing = left.length === 0 ? '' : `\n\nThe time was too short for: ${left.map(nameOf).join('; ')}.`;
  const version = pytorch?.version === undefined ? '' : `\n\nPyTorch is version ${pytorch.version}.`;
  return { markdown: `${table(head, rows, ['left', 'left'])}${version}${missing}`, charts: [] };
}
