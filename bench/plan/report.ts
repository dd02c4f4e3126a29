/** `llavacode plan` as Markdown. */
import { formatSlo } from '../measure/latency.ts';
import type { Artifact } from '../report/artifact.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Report } from '../report/report.ts';
import { MOST_SIMULATED } from './plan.ts';
import type { PlanResult } from './result.ts';

export function reportPlan({ result }: Artifact<PlanResult>): Report {
  const { rates, request, plans, validation } = result;
  const [prefillCores, decodeCores] = rates.coresPerWorker;
  const rows = plans.map(({ rate, prefill, decode, attainment, feasible }) =>
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
  const errors = validation.flatMap(({ rate, figures }) =>
    figures.map(({ name, measured, simulated }) => [
      figure(rate),
      name,
      figure(measured),
      figure(simulated),
      measured === 0 ? '—' : percent(simulated / measured - 1),
    ]),
  );
  const measured = [
    ...rates.prefill.map(({ tokens, ms }) => [`prompt of ${tokens} tokens`, figure(ms), figure((1000 * tokens) / ms)]),
    ...rates.decode.map(({ batch, ms }) => [
      `decode step, ${batch} sequence(s)`,
      figure(ms),
      figure((1000 * batch) / ms),
    ]),
  ];
  return {
    markdown: [
      `${rates.model}: ${request.promptTokens} prompt and ${request.outputTokens} output tokens, ${formatSlo(request.slo)} for ${percent(request.target)}; ` +
        `a prefill worker has ${prefillCores} core(s), a decode worker ${decodeCores} and ${rates.slots} slots. What a worker costs was measured:`,
      table(['', 'ms', 'tokens/s'], measured),
      'What the load needs, by simulation (extrapolated from one worker of each kind on this machine), once it is steady. ' +
        `A load that takes more than about ${MOST_SIMULATED} workers of a kind is simulated as a fraction of it, and the workers ` +
        'are multiplied: an upper bound, as one large pool can only do better than several small ones:',
      table(['requests/s', 'prefill workers', 'decode workers', 'cores', 'attainment'], rows, ['right']),
      errors.length === 0
        ? 'Not validated: no run of `bench load` on 1P:1D was given.'
        : `The same simulation against \`bench load\` on 1P:1D, with the arrivals of each run:\n\n${table(['requests/s', 'figure', 'measured', 'simulated', 'error'], errors, ['right', 'left'])}`,
    ].join('\n\n'),
    charts: [],
  };
}
