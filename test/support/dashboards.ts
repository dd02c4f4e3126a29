/**
 * Grafana's dashboards of deploy/observability/dashboards, as code: a test renders the files anew, and checks that
 * every metric exists. Panels ask Prometheus; the variable `datasource` chooses which one.
 */
import {
  type Dashboard,
  DashboardBuilder,
  type DataSourceRef,
  DatasourceVariableBuilder,
  RowBuilder,
} from '@grafana/grafana-foundation-sdk/dashboard';
import { DataqueryBuilder } from '@grafana/grafana-foundation-sdk/prometheus';
import { PanelBuilder } from '@grafana/grafana-foundation-sdk/timeseries';

/** One panel: its title says what the figures mean, and each query has a legend. */
interface Panel {
  readonly title: string;
  readonly unit: string;
  readonly queries: readonly (readonly [expr: string, legend: string])[];
  /** Whether buckets point to traces. */
  readonly traced?: boolean;
}

interface Section {
  readonly title: string;
  readonly panels: readonly Panel[];
}

const SOURCE: DataSourceRef = { type: 'prometheus', uid: '$datasource' };
const RATE = '[$__rate_interval]';

const rate = (metric: string, by = '', select = '') => `sum${by && ` by (${by})`} (rate(${metric}${select}${RATE}))`;
const quantile = (q: number, metric: string, by = '') =>
  `histogram_quantile(${q}, sum by (${['le', by].filter(Boolean).join(', ')}) (rate(${metric}_bucket${RATE})))`;
const quantiles = (metric: string): Panel['queries'] =>
  [0.5, 0.95, 0.99].map((q) => [quantile(q, metric), `p${q * 100}`]);
const share = (part: string, whole: string) => `${part} / (${whole} > 0)`;

const SERVICE_LEVEL: readonly Section[] = [
  {
    title: 'Latency',
    panels: [
      { title: 'Time to first token', unit: 's', queries: quantiles('vllm:time_to_first_token_seconds'), traced: true },
      {
        title: 'Time per output token',
        unit: 's',
        queries: quantiles('vllm:request_time_per_output_token_seconds'),
        traced: true,
      },
      {
        title: 'Time to first token, p95 by tenant',
        unit: 's',
        queries: [[quantile(0.95, 'llavacode:tenant_ttft_seconds', 'tenant'), '{{tenant}}']],
      },
      {
        title: 'Time per output token, p95 by tenant',
        unit: 's',
        queries: [[quantile(0.95, 'llavacode:tenant_tpot_seconds', 'tenant'), '{{tenant}}']],
      },
      {
        title: 'Where the time goes, p95 by stage',
        unit: 's',
        queries: [[quantile(0.95, 'llavacode:stage_seconds', 'stage'), '{{stage}}']],
      },
    ],
  },
  {
    title: 'Objectives',
    panels: [
      {
        title: 'First tokens within 2.5 s, share by tenant',
        unit: 'percentunit',
        queries: [
          [
            share(
              rate('llavacode:tenant_ttft_seconds_bucket', 'tenant', '{le="2.5"}'),
              rate('llavacode:tenant_ttft_seconds_count', 'tenant'),
            ),
            '{{tenant}}',
          ],
        ],
      },
      {
        title: 'Completions that succeed, share by tenant',
        unit: 'percentunit',
        queries: [
          [
            share(
              rate('llavacode:tenant_requests_total', 'tenant', '{outcome="ok"}'),
              rate('llavacode:tenant_requests_total', 'tenant'),
            ),
            '{{tenant}}',
          ],
        ],
      },
      {
        title: 'Error budgets: share of errors by objective and window',
        unit: 'percentunit',
        queries: ['availability', 'ttft'].flatMap((objective) =>
          ['5m', '1h', '6h'].map((window): [string, string] => [
            `llavacode:${objective}_errors:ratio_rate${window}`,
            `${objective} ${window}`,
          ]),
        ),
      },
      {
        title: 'Outcomes other than ok',
        unit: 'reqps',
        queries: [[rate('llavacode:tenant_requests_total', 'outcome', '{outcome!="ok"}'), '{{outcome}}']],
      },
    ],
  },
  {
    title: 'Load',
    panels: [
      {
        title: 'Completions by tenant',
        unit: 'reqps',
        queries: [[rate('llavacode:tenant_requests_total', 'tenant'), '{{tenant}}']],
      },
      {
        title: 'Tokens',
        unit: 'short',
        queries: [
          [rate('vllm:prompt_tokens_total'), 'prompt'],
          [rate('vllm:prompt_tokens_cached_total'), 'of these cached'],
          [rate('llavacode:soft_tokens_total'), 'of these soft'],
          [rate('vllm:generation_tokens_total'), 'output'],
        ],
      },
      {
        title: 'Refusals by limit',
        unit: 'reqps',
        queries: [[rate('llavacode:requests_shed_total', 'limit'), '{{limit}}']],
      },
    ],
  },
];

const POOLS: readonly Section[] = [
  {
    title: 'Queues',
    panels: [
      {
        title: 'Waiting prompts and sequences',
        unit: 'short',
        queries: [['sum by (service) (vllm:num_requests_waiting)', '{{service}}']],
      },
      {
        title: 'Waiting prompt tokens',
        unit: 'short',
        queries: [['sum by (service) (llavacode:waiting_tokens)', '{{service}}']],
      },
      { title: 'Time in queues', unit: 's', queries: quantiles('vllm:request_queue_time_seconds') },
      {
        title: 'Workers: usable, and what the load wants',
        unit: 'short',
        queries: [
          ['max by (role) (llavacode:workers_usable)', '{{role}} usable'],
          ['sum by (role) (llavacode:desired_workers)', '{{role}} wanted'],
        ],
      },
    ],
  },
  {
    title: 'Slots and batches',
    panels: [
      {
        title: 'KV slots in use',
        unit: 'percentunit',
        queries: [['vllm:kv_cache_usage_perc', '{{service}} {{instance}}']],
      },
      {
        title: 'Running prompts and sequences',
        unit: 'short',
        queries: [['vllm:num_requests_running', '{{service}} {{instance}}']],
      },
      { title: 'Sequences in a decode step', unit: 'short', queries: quantiles('llavacode:decode_batch_size') },
      { title: 'Decode step', unit: 's', queries: quantiles('llavacode:decode_step_seconds') },
      { title: 'Prompts computed', unit: 's', queries: quantiles('vllm:request_prefill_time_seconds') },
      {
        title: 'Prompt tokens found in the prefix cache',
        unit: 'percentunit',
        queries: [[share(rate('vllm:prefix_cache_hits_total'), rate('vllm:prefix_cache_queries_total')), 'hits']],
      },
      {
        title: 'Slots of each worker',
        unit: 'short',
        queries: [['vllm:cache_config_info', '{{instance}}: {{num_gpu_blocks}} of {{block_size}} {{cache_dtype}}']],
      },
    ],
  },
  {
    title: 'Hand-over of KV',
    panels: [
      { title: 'Staged KV', unit: 'bytes', queries: [['llavacode:kv_staged_bytes', '{{instance}}']] },
      {
        title: 'Age of the oldest staged KV',
        unit: 's',
        queries: [['llavacode:kv_staged_oldest_seconds', '{{instance}}']],
      },
      { title: 'Hand-over', unit: 's', queries: quantiles('llavacode:kv_handoff_seconds') },
      {
        title: 'Hand-over after prefill had finished',
        unit: 's',
        queries: quantiles('llavacode:kv_handoff_exposed_seconds'),
      },
      {
        title: 'KV pulled',
        unit: 'Bps',
        queries: [[rate('llavacode:kv_handoff_bytes_total', 'instance'), '{{instance}}']],
      },
      {
        title: 'Leases that ended, by reason',
        unit: 'ops',
        queries: [[rate('llavacode:kv_leases_ended_total', 'reason'), '{{reason}}']],
      },
    ],
  },
  {
    title: 'Disturbances',
    panels: [
      { title: 'Replays by reason', unit: 'ops', queries: [[rate('llavacode:replays_total', 'reason'), '{{reason}}']] },
      {
        title: 'Sequences that made way or were sent back',
        unit: 'ops',
        queries: [
          [rate('vllm:num_preemptions_total'), 'made way'],
          [rate('llavacode:sequences_requeued_total'), 'sent back'],
        ],
      },
    ],
  },
];

const RETRIEVAL: readonly Section[] = [
  {
    title: 'Context',
    panels: [
      {
        title: 'Completions without context, by reason',
        unit: 'reqps',
        queries: [[rate('llavacode:requests_degraded_total', 'reason'), '{{reason}}']],
      },
      {
        title: 'Chunks in prompts, by mode',
        unit: 'ops',
        queries: [[rate('llavacode:chunks_retrieved_total', 'mode'), '{{mode}}']],
      },
      {
        title: 'Search, p50 and p99',
        unit: 's',
        queries: [0.5, 0.99].map((q): [string, string] => [
          `histogram_quantile(${q}, sum by (le) (rate(llavacode:stage_seconds_bucket{stage="retrieve"}${RATE})))`,
          `p${q * 100}`,
        ]),
      },
      {
        title: 'Editors: shown, taken, dismissed',
        unit: 'ops',
        queries: [[rate('llavacode:completion_events_total', 'event, mode'), '{{event}} {{mode}}']],
      },
    ],
  },
  {
    title: 'Store',
    panels: [
      { title: 'Circuit open', unit: 'short', queries: [['llavacode:store_circuit_open', '{{instance}}']] },
      {
        title: 'Rows by source',
        unit: 'ops',
        queries: [[rate('llavacode:store_rows_total', 'source'), '{{source}}']],
      },
      {
        title: 'Rows left out, by reason',
        unit: 'ops',
        queries: [[rate('llavacode:store_rows_left_out_total', 'reason'), '{{reason}}']],
      },
    ],
  },
  {
    title: 'Indexing',
    panels: [
      {
        title: 'Time since an index run succeeded',
        unit: 's',
        queries: [['time() - (llavacode:index_last_success_seconds > 0)', '{{instance}}']],
      },
      {
        title: 'Index runs by outcome',
        unit: 'ops',
        queries: [[rate('llavacode:index_runs_total', 'outcome'), '{{outcome}}']],
      },
      {
        title: 'Chunks by what was done',
        unit: 'ops',
        queries: [
          [rate('llavacode:indexed_chunks_total', 'outcome'), '{{outcome}}'],
          [rate('llavacode:chunks_unparsed_total'), 'without a syntax tree'],
        ],
      },
      {
        title: 'Files not indexed, by reason',
        unit: 'ops',
        queries: [[rate('llavacode:skipped_files_total', 'reason'), '{{reason}}']],
      },
      { title: 'One batch of the encoder', unit: 's', queries: quantiles('llavacode:encode_batch_seconds') },
    ],
  },
];

const WORKERS: readonly Section[] = [
  {
    title: 'Processes',
    panels: [
      {
        title: 'Memory',
        unit: 'bytes',
        queries: [['process_resident_memory_bytes{service!=""}', '{{service}} {{instance}}']],
      },
      {
        title: 'Restarts in an hour',
        unit: 'short',
        queries: [['changes(process_start_time_seconds{service!=""}[1h])', '{{service}} {{instance}}']],
      },
      {
        title: 'Processor time',
        unit: 'percentunit',
        queries: [[`rate(process_cpu_seconds_total{service!=""}${RATE})`, '{{service}} {{instance}}']],
      },
      {
        title: 'Delay of the event loop, p99',
        unit: 's',
        queries: [['nodejs_eventloop_lag_p99_seconds{service!=""}', '{{service}} {{instance}}']],
      },
    ],
  },
  {
    title: 'What they are',
    panels: [
      {
        title: 'Builds',
        unit: 'short',
        queries: [['sum by (service, version, commit) (llavacode:build_info)', '{{service}} {{version}} {{commit}}']],
      },
      {
        title: 'Devices',
        unit: 'short',
        queries: [['sum by (service, kind, name) (llavacode:device_info)', '{{service}} {{kind}} {{name}}']],
      },
      {
        title: 'Usable workers by device, as gateways see them',
        unit: 'short',
        queries: [['max by (role, device) (llavacode:workers_by_device)', '{{role}} {{device}}']],
      },
      {
        title: 'Certificates end in',
        unit: 's',
        queries: [
          ['min by (service, setting) (llavacode:certificate_not_after_seconds) - time()', '{{service}} {{setting}}'],
        ],
      },
      {
        title: 'API keys end in, by tenant',
        unit: 's',
        queries: [['min by (tenant) (llavacode:api_key_not_after_seconds) - time()', '{{tenant}}']],
      },
      {
        title: 'Gateways that hear of each other',
        unit: 'short',
        queries: [['llavacode:gateways_alive', '{{instance}}']],
      },
    ],
  },
];

function panelOf({ title, unit, queries, traced = false }: Panel): PanelBuilder {
  const panel = new PanelBuilder().title(title).unit(unit).datasource(SOURCE).span(12).height(8);
  if (unit === 'percentunit') panel.min(0);
  for (const [expr, legend] of queries) {
    const query = new DataqueryBuilder().expr(expr).legendFormat(legend).datasource(SOURCE);
    panel.withTarget(traced ? query.exemplar(true) : query);
  }
  return panel;
}

function dashboardOf(uid: string, title: string, sections: readonly Section[]): Dashboard {
  const dashboard = new DashboardBuilder(title)
    .uid(uid)
    .tags(['llavacode'])
    .refresh('30s')
    .time({ from: 'now-1h', to: 'now' })
    .timezone('browser')
    .readonly()
    .withVariable(new DatasourceVariableBuilder('datasource').label('Prometheus').type('prometheus'));
  for (const { title, panels } of sections) {
    dashboard.withRow(new RowBuilder(title));
    for (const panel of panels) dashboard.withPanel(panelOf(panel));
  }
  return dashboard.build();
}

/** By the name of the file. */
export const DASHBOARDS: Readonly<Record<string, Dashboard>> = {
  'service-level': dashboardOf('llavacode-service-level', 'LlavaCode: service level', SERVICE_LEVEL),
  pools: dashboardOf('llavacode-pools', 'LlavaCode: pools', POOLS),
  retrieval: dashboardOf('llavacode-retrieval', 'LlavaCode: retrieval', RETRIEVAL),
  workers: dashboardOf('llavacode-workers', 'LlavaCode: workers', WORKERS),
};

/** Every query of every panel. */
export const QUERIES: readonly (readonly [panel: string, expr: string])[] = [
  ...[...SERVICE_LEVEL, ...POOLS, ...RETRIEVAL, ...WORKERS].flatMap(({ panels }) =>
    panels.flatMap(({ title, queries }) => queries.map(([expr]): [string, string] => [title, expr])),
  ),
];

export const renderedDashboard = (name: string) => `${JSON.stringify(DASHBOARDS[name], null, 2)}\n`;
