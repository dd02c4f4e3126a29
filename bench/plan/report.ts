/** The report of `llavacode plan`. */
import { formatSlo } from '../measure/latency.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import { MOST_SIMULATED } from './plan.ts';
import type { PlanResult } from './result.ts';

export const PLAN: Bench<PlanResult> = {
  name: 'plan',
  title: 'Planner',
  definitions: {
    attainment: 'share of simulated requests that meet every objective, without those of the ramp',
    error: 'simulated / measured - 1, with the arrivals of the measured run',
    'decode step': 'ms between two tokens while a batch generates; mean from the last start to the first end',
  },
  report: ({ result }) => reportPlan(result),
  headline({ plans, rates: { model } }) {
    const plan = plans.filter(({ feasible }) => feasible).at(-1);
    if (plan === undefined) return 'one request alone misses the objective';
    const { rate, prefill, decode } = plan;
    return `${figure(rate)} requests/s of ${model} need ${prefill} prefill and ${decode} decode workers`;
  },
};

function reportPlan({ rates, request, plans, validation }: PlanResult): Report {
  const [prefillCores, decodeCores] = rates.coresPerWorker;
  const measured = [
    ...rates.prefill.map(({ tokens, ms }) => [`prompt of ${tokens} tokens`, figure(ms), figure((1000 * tokens) / ms)]),
    ...rates.decode.map(({ batch, ms }) => [
      `decode step, ${batch} sequence(s)`,
      figure(ms),
      figure((1000 * batch) / ms),
    ]),
  ];
  const needed = plans.map(({ rate, prefill, decode, attainment, feasible }) =>
    feasible
      ? [
          figure(rate),
          String(prefill),
          String(decode),
          String(prefill * prefillCores + decode * decodeCores),
          percent(attainment),
        ]
      : [figure(rate), '—', '—', '—', 'one request alone misses the objective'],
  );
  const sections = [
    `${rates.model}: ${request.promptTokens} prompt and ${request.outputTokens} output tokens; ${formatSlo(request.slo)} for ` +
      `${percent(request.target)} of the requests. A prefill worker has ${prefillCores} core(s); a decode worker has ` +
      `${decodeCores} core(s) and ${rates.slots} slots. These costs of a worker were measured:`,
    table(['', 'ms', 'tokens/s'], measured),
    'The next table shows the workers that a steady load needs, by simulation (extrapolated from one worker of each kind on ' +
      `this machine). A load that needs more than about ${MOST_SIMULATED} workers of a kind is simulated as a fraction of ` +
      'itself, and the workers are multiplied. That is an upper bound, because one large pool cannot do worse than several ' +
      'small ones:',
    table(['requests/s', 'prefill workers', 'decode workers', 'cores', 'attainment'], needed, ['right']),
    validationOf(validation),
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}

function validationOf(validation: PlanResult['validation']): string {
  if (validation.length === 0) {
    return 'The simulation is not validated, because no run of `bench load` on 1P:1D was given.';
  }
  const rows = validation.flatMap(({ rate, figures }) =>
    figures.map(({ name, measured, simulated }) => [
      figure(rate),
      name,
      figure(measured),
      figure(simulated),
      measured === 0 ? '—' : percent(simulated / measured - 1),
    ]),
  );
  const errors = table(['requests/s', 'figure', 'measured', 'simulated', 'error'], rows, ['right', 'left']);
  return `The same simulation beside \`bench load\` on 1P:1D, with the arrivals of each run:\n\n${errors}`;
}
