/**
 * The rules of deploy/observability/rules.yml: what is recorded, and who is woken by what. They are written here, so
 * that lists such as the codes that count against availability come from the code; a test renders the file anew.
 */
import { stringify } from 'yaml';
import type { Degradation } from '../../services/gateway/context/context.ts';
import { ERRORS } from '../../services/lib/process/errors.ts';

/** What is promised. Change it here, and render the file anew. */
export const OBJECTIVES = {
  /** Share of completions that are not refused or failed for a reason of the system's own. */
  availability: 0.999,
  /** Share of completions with their first token within {@link TTFT_SECONDS}. */
  ttft: 0.99,
};
/** One of the bounds of `llavacode:arm_time_to_first_token_seconds`. */
export const TTFT_SECONDS = 2.5;

/** Outcomes that are the system's fault: those of 5xx, and refusals for want of room. */
const OWN_FAULTS = Object.entries(ERRORS)
  .filter(([code, { http }]) => http >= 500 || code === 'saturated')
  .map(([code]) => code);

/**
 * Windows of burn rates, as in chapter 5 of Google's SRE Workbook: an error budget of 30 days that burns so many times
 * too fast over a long window, and still does over a short one.
 */
const BURNS = [
  { factor: 14.4, long: '1h', short: '5m', wait: '2m', severity: 'page' },
  { factor: 6, long: '6h', short: '30m', wait: '2m', severity: 'page' },
  { factor: 3, long: '1d', short: '2h', wait: '2m', severity: 'ticket' },
  { factor: 1, long: '3d', short: '6h', wait: '2m', severity: 'ticket' },
] as const;
const WINDOWS = [...new Set(BURNS.flatMap(({ long, short }) => [short, long]))];

interface Rule {
  readonly record?: string;
  readonly alert?: string;
  readonly expr: string;
  readonly for?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
}

/**
 * Where the runbook is: a path in this repository, until whoever installs the rules puts the address in its place under
 * which their people read it (deploy/observability/README.md, and `prometheusRule.runbookUrl` of the chart).
 */
const RUNBOOK = 'deploy/observability/RUNBOOK.md';
/** `#llavacodestorecircuitopen`: the anchor that a heading of the alert's name has. */
const runbook = (alert: string) => `${RUNBOOK}#${alert.toLowerCase()}`;

const alert = (name: string, severity: string, wait: string, expr: string, summary: string): Rule => ({
  alert: name,
  expr,
  for: wait,
  labels: { severity },
  annotations: { summary, runbook_url: runbook(name) },
});

/**
 * Completions by how they ended. These are counted by bundle, of which there are two at most, so that each counter is
 * there from the start, at 0: of one that appears at 1, `rate` says nothing.
 */
const ENDED = 'llavacode:arm_requests_total';
const FIRST_TOKENS = 'llavacode:arm_time_to_first_token_seconds';
const faults = `outcome=~"${OWN_FAULTS.join('|')}"`;
/** Those that say something about the system: what a client has to mend is not among them. */
const judged = `outcome=~"${['ok', ...OWN_FAULTS].join('|')}"`;
/** Share of completions without context of which somebody is told. */
const LACKING_CONTEXT = 0.05;
/** Why it is missing where neither clients nor choices of the operator are the reason; stale indexes have an alert. */
const LACKS: readonly Degradation[] = [
  'over_budget',
  'store_unavailable',
  'retrieval_failed',
  'index_too_large',
  'rows_damaged',
];
const recorded = (objective: keyof typeof OBJECTIVES, window: string) =>
  `llavacode:${objective}_errors:ratio_rate${window}`;

function recordings(): Rule[] {
  return WINDOWS.flatMap((window) => {
    const all = `sum(rate(${ENDED}{${judged}}[${window}]))`;
    const bad = `sum(rate(${ENDED}{${faults}}[${window}]))`;
    const begun = `sum(rate(${FIRST_TOKENS}_count[${window}]))`;
    const quick = `sum(rate(${FIRST_TOKENS}_bucket{le="${TTFT_SECONDS}"}[${window}]))`;
    return [
      { record: recorded('availability', window), expr: `${bad} / (${all} > 0)` },
      { record: recorded('ttft', window), expr: `1 - ${quick} / (${begun} > 0)` },
    ];
  });
}

function burns(objective: keyof typeof OBJECTIVES, subject: string): Rule[] {
  const budget = 1 - OBJECTIVES[objective];
  const name = objective === 'ttft' ? 'Ttft' : 'Availability';
  return BURNS.map(({ factor, long, short, wait, severity }) => {
    // Where the budget is large, a burn of 14.4 would be more than everything.
    const most = `${Number(Math.min(factor * budget, 0.9).toPrecision(6))}`;
    return alert(
      `Llavacode${name}Burn${String(factor).replace('.', 'p')}x`,
      severity,
      wait,
      `${recorded(objective, long)} > ${most} and ${recorded(objective, short)} > ${most}`,
      `${subject}: the error budget of 30 days burns ${factor} times too fast (${long} and ${short})`,
    );
  });
}

const OTHERS: readonly Rule[] = [
  alert(
    'LlavacodeServesNothing',
    'page',
    '1m',
    `(sum(rate(${ENDED}{${faults}}[2m])) > 0 or sum(llavacode:requests_inflight) > 0) ` +
      `unless sum(rate(${ENDED}{outcome="ok"}[2m])) > 0`,
    'Completions are asked for, and none has succeeded for two minutes, although gateways are up',
  ),
  alert(
    'LlavacodeNoUsableWorker',
    'page',
    '30s',
    'max by (role) (llavacode:workers_usable) == 0',
    'No gateway has a worker of this role that it could send requests to',
  ),
  alert(
    'LlavacodeStoreCircuitOpen',
    'ticket',
    '1m',
    'max(llavacode:store_circuit_open) == 1',
    'The store of indexes fails or is slow: completions go on without context',
  ),
  alert(
    'LlavacodeContextMissing',
    'ticket',
    '2m',
    `sum(rate(llavacode:requests_degraded_total{reason=~"${LACKS.join('|')}"}[5m])) / ` +
      `(sum(rate(${ENDED}{${judged}}[5m])) > 0) > ${LACKING_CONTEXT}`,
    'One completion in twenty goes on without the context that it asks for: users see worse suggestions, not errors',
  ),
  alert(
    'LlavacodeStagedKvStays',
    'ticket',
    '1m',
    'max by (instance) (llavacode:kv_staged_oldest_seconds) > 60',
    'A prefill worker holds a KV cache that no decoder takes, for more than twice the time of a lease',
  ),
  alert(
    'LlavacodeIndexStale',
    'ticket',
    '2m',
    'sum(rate(llavacode:requests_degraded_total{reason="stale_index"}[5m])) > 0',
    'Indexes were made with another encoder or projector than the one that is served',
  ),
  alert(
    'LlavacodeCertificateExpires',
    'ticket',
    '1m',
    'min by (service, setting) (llavacode:certificate_not_after_seconds) - time() < 14 * 86400',
    'A certificate of this service ends within 14 days',
  ),
  alert(
    'LlavacodeApiKeyExpires',
    'ticket',
    '1m',
    'min by (tenant) (llavacode:api_key_not_after_seconds) - time() < 14 * 86400',
    'An API key of this tenant ends within 14 days, or has ended',
  ),
];

/** The groups of rules, as Prometheus reads them. */
const RULE_GROUPS = [
  { name: 'llavacode-objectives', interval: '30s', rules: recordings() },
  {
    name: 'llavacode-alerts',
    interval: '30s',
    rules: [...burns('availability', 'Completions fail'), ...burns('ttft', 'First tokens are late'), ...OTHERS],
  },
];

export const ALERTS: readonly string[] = RULE_GROUPS.flatMap(({ rules }) => rules.flatMap(({ alert = [] }) => alert));

/** Every expression, by the name of its rule. */
export const EXPRESSIONS: readonly (readonly [name: string, expr: string])[] = RULE_GROUPS.flatMap(({ rules }) =>
  rules.map((rule): [string, string] => [rule.alert ?? rule.record ?? '', rule.expr]),
);

export const RECORDED: readonly string[] = RULE_GROUPS.flatMap(({ rules }) =>
  rules.flatMap(({ record = [] }) => record),
);

export const renderedRules = () =>
  `# Rendered from test/support/alert-rules.ts: npx vitest run test/deploy/observability.test.ts -u\n${stringify({ groups: RULE_GROUPS }, { lineWidth: 0 })}`;
