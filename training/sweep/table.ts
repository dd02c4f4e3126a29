/** The trials of a sweep as text, and the best of them as a command line. */
import { budgetOf } from './halving.ts';
import type { SweepOptions, SweepResults } from './sweep.ts';

/** Words of a command, quoted for a POSIX shell where they must be. */
export const shellLine = (words: readonly string[]): string =>
  words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(' ');

/** @param command the words of `llavacode train` that all trials have, without the settings that were searched */
export function tableOf(
  { rounds, trials }: SweepResults,
  { ranges, seed }: Pick<SweepOptions, 'ranges' | 'seed'>,
  command: readonly string[],
): string {
  const heads = ['trial', ...ranges.map(({ name }) => name), 'rounds', 'steps', 'EM %', 'ES %', 'CE', 'cosine'];
  const lines = trials.map(({ number, settings, rounds, steps, validation }) => [
    String(number + 1),
    ...ranges.map(({ name }) => String(settings[name])),
    String(rounds),
    String(steps),
    ...(validation === undefined
      ? ['diverged', '', '', '']
      : [
          (100 * validation.validEm).toFixed(1),
          (100 * validation.validEs).toFixed(1),
          validation.validCe.toFixed(4),
          validation.meanCosine?.toFixed(3) ?? 'none',
        ]),
  ]);
  const widths = heads.map((head, i) => Math.max(head.length, ...lines.map((line) => line[i]!.length)));
  const shown = (cells: readonly string[]) => `| ${cells.map((cell, i) => cell.padEnd(widths[i]!)).join(' | ')} |`;
  const rule = `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`;
  const total = budgetOf(rounds);
  const [first] = rounds;
  const last = rounds.at(-1)!;
  const found = ranges.flatMap(({ name }) => [`--${name}`, String(trials[0]!.settings[name])]);
  const ofRounds = rounds.map((round) => `${round.trials} to step ${round.steps}`).join(', ');
  return `${[shown(heads), rule, ...lines.map(shown)].join('\n')}

Rounds: ${ofRounds}. All together made ${total} steps; ${first!.trials} whole runs would take ${first!.trials * last.steps}.
Within a round every trial has had the same steps, samples, schedule and initial projector (seed ${seed}).
Trials are compared by EM, then ES, then cross-entropy of the validation, each at its best checkpoint.
This is random search with successive halving. The paper's search is Optuna's TPE, which proposes trials by what earlier
ones scored; this one does not.

The best settings:
${shellLine(['llavacode', 'train', ...command, ...found])}
`;
}
