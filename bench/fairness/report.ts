/** The report of `bench fairness`: one row per mix. */
import { figure, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import { backlogged, LEAST_FAIRNESS } from './judge.ts';
import type { MixResult } from './measure.ts';

export interface FairnessResult {
  readonly model: string;
  readonly mixes: readonly MixResult[];
}

export const FAIRNESS: Bench<FairnessResult> = {
  name: 'fairness',
  title: 'Fairness: tenants beside one that wants everything',
  definitions: {
    fairness:
      "Jain's index (Σ x)² / (n Σ x²) of the service per weight over the backlogged tenants: 1 for equal shares, 1/n if one has everything",
    service: 'tokens computed for a tenant in the window: prompts whose first token came, and output',
    backlogged: 'tenants of which at least one sequence waited for its first token in 95 % of the window',
    'TTFT of the typist': 'ms from the intended send time to the first token of a tenant that asks for little',
    failed: 'requests of honest tenants that failed, by error code',
  },
  report: ({ result }) => reportFairness(result),
  headline: ({ mixes }) => {
    const known = mixes.flatMap(({ fairness }) => fairness ?? []);
    const kept = mixes.filter(({ broken }) => broken === '').length;
    return `${kept} of ${mixes.length} mixes as promised; lowest fairness ${figure(Math.min(...known))}`;
  },
};

const counts = (of: Readonly<Record<string, number>>) =>
  Object.entries(of)
    .map(([code, count]) => `${count} ${code}`)
    .join(', ') || '0';

function reportFairness({ mixes }: FairnessResult): Report {
  const head = [
    'Mix',
    'weights',
    'fairness',
    'tokens, busy 1',
    'tokens, busy 2',
    'tokens, attacker',
    'backlogged',
    'TTFT of the typist, p50 ms',
    'p99 ms',
    'failed',
    'attacker refused',
    'verdict',
  ];
  const rows = mixes.map((mix) => [
    mix.name,
    `${mix.weight}:1`,
    mix.fairness === undefined ? '—' : mix.fairness.toFixed(3),
    ...[0, 1, 2].map((i) => (mix.shares[i] ? String(mix.shares[i].tokens) : '—')),
    `${backlogged(mix.shares).length} of ${mix.shares.length}`,
    figure(mix.ttft.p50),
    figure(mix.ttft.p99),
    counts(mix.failed),
    counts(mix.refused),
    mix.broken === '' ? 'as promised' : `**${mix.broken}**`,
  ]);
  const sections = [
    `Two busy tenants and one that types, beside an attacker. A mix is as promised if its fairness is at least ` +
      `${LEAST_FAIRNESS} and no request of an honest tenant fails.`,
    table(head, rows, ['left', ...head.slice(2).map(() => 'right' as const), 'left']),
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}
