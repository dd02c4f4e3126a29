import { describe, expect, it, vi } from 'vitest';
import { type MetricsService, measuredBy, metrics } from '../../services/lib/process/metrics.ts';
import { documented, metricFacts } from '../support/operations.ts';

const all = Object.values(metrics).map((metric) => ({ ...metricFacts(metric), type: metric.constructor.name }));

/** Names that vLLM itself exposes in a live scrape, counters with their `_total`. */
const VLLM = [
  'vllm:time_to_first_token_seconds',
  'vllm:request_time_per_output_token_seconds',
  'vllm:inter_token_latency_seconds',
  'vllm:e2e_request_latency_seconds',
  'vllm:request_inference_time_seconds',
  'vllm:prompt_tokens_total',
  'vllm:prompt_tokens_cached_total',
  'vllm:generation_tokens_total',
  'vllm:request_prompt_tokens',
  'vllm:request_generation_tokens',
  'vllm:request_success_total',
  'vllm:num_requests_running',
  'vllm:num_requests_waiting',
  'vllm:spec_decode_num_drafts_total',
  'vllm:spec_decode_num_draft_tokens_total',
  'vllm:spec_decode_num_accepted_tokens_total',
  'vllm:spec_decode_num_accepted_tokens_per_pos_total',
  'vllm:num_preemptions_total',
  'vllm:request_queue_time_seconds',
  'vllm:request_prefill_time_seconds',
  'vllm:request_decode_time_seconds',
  'vllm:kv_cache_usage_perc',
  'vllm:cache_config_info',
  'vllm:prefix_cache_queries_total',
  'vllm:prefix_cache_hits_total',
];

describe('the metrics table', () => {
  it('every metric is documented in OPERATIONS.md, and nothing else is', () => {
    expect(documented('metrics')).toEqual(all.map(({ name }) => name));
  });

  it("a metric whose name begins with vllm: has one of vLLM's own names", () => {
    expect(all.map(({ name }) => name).filter((name) => name.startsWith('vllm:') && !VLLM.includes(name))).toEqual([]);
  });

  it.each(all)('the metric $name follows the naming rules of Prometheus', ({ name, help, labelNames, type }) => {
    expect(name).toMatch(/^(vllm:|llavacode:|gen_ai_server_)[a-z][a-z0-9_]*$/);
    expect(name).not.toMatch(/_(sum|count|bucket|ms|milliseconds|us|kb|mb)$/);
    expect(name.endsWith('_total')).toBe(type === 'Counter');
    expect(help).not.toBe('');
    for (const label of labelNames) {
      expect(label).toMatch(/^[a-z][a-z0-9_]*$/);
      expect(['le', 'quantile', 'service', 'model_name']).not.toContain(label);
    }
  });
});

/** The metrics that one service exports beside those of its process, in a process of its own. */
async function exportedBy(service: MetricsService, model?: string) {
  vi.resetModules();
  const fresh = await import('../../services/lib/process/metrics.ts');
  fresh.collectProcessMetrics(service, model);
  return { ...fresh, ...(await fresh.exposition()) };
}
const namesIn = (text: string) =>
  [...text.matchAll(/^# TYPE ((?:vllm:|llavacode:|gen_ai_)\S+)/gm)].map((match) => match[1]!);

const EVERYWHERE = [
  'llavacode:build_info',
  'llavacode:certificate_not_after_seconds',
  'llavacode:reload_failures_total',
  'llavacode:reload_success_timestamp_seconds',
];
const PREFILL = [
  ...EVERYWHERE,
  'vllm:cache_config_info',
  'llavacode:device_info',
  'vllm:num_requests_waiting',
  'llavacode:waiting_tokens',
  'vllm:num_requests_running',
  'vllm:kv_cache_usage_perc',
  'vllm:prefix_cache_queries_total',
  'vllm:prefix_cache_hits_total',
  'vllm:request_prefill_time_seconds',
  'llavacode:kv_staged_bytes',
  'llavacode:kv_staged_oldest_seconds',
  'llavacode:kv_leases_ended_total',
];
const DECODE = [
  ...EVERYWHERE,
  'vllm:cache_config_info',
  'llavacode:device_info',
  'vllm:num_requests_waiting',
  'vllm:num_requests_running',
  'vllm:kv_cache_usage_perc',
  'vllm:request_decode_time_seconds',
  'llavacode:decode_step_seconds',
  'llavacode:decode_batch_size',
  'vllm:spec_decode_num_drafts_total',
  'vllm:spec_decode_num_draft_tokens_total',
  'vllm:spec_decode_num_accepted_tokens_total',
  'vllm:spec_decode_num_accepted_tokens_per_pos_total',
  'llavacode:kv_handoff_seconds',
  'llavacode:kv_handoff_exposed_seconds',
  'llavacode:kv_handoff_bytes_total',
];
/** The metrics that each service measures: no other is exported, so that no gauge is 0 for want of a measurement. */
const EXPORTED: Record<MetricsService, readonly string[]> = {
  gateway: [
    ...EVERYWHERE,
    'llavacode:audit_lines_lost_total',
    'llavacode:arm_requests_total',
    'llavacode:arm_time_to_first_token_seconds',
    'llavacode:arm_requests_degraded_total',
    'llavacode:arm_completion_events_total',
    'llavacode:rollout_share_ratio',
    'llavacode:rollout_fallbacks_total',
    'llavacode:rollout_repositories',
    'gen_ai_server_request_duration_seconds',
    'gen_ai_server_time_to_first_token_seconds',
    'gen_ai_server_time_per_output_token_seconds',
    'llavacode:tenant_ttft_seconds',
    'llavacode:tenant_tpot_seconds',
    'llavacode:tenant_prompt_tokens_total',
    'llavacode:tenant_generation_tokens_total',
    'llavacode:tenant_requests_total',
    'llavacode:desired_workers',
    'vllm:time_to_first_token_seconds',
    'vllm:request_time_per_output_token_seconds',
    'vllm:inter_token_latency_seconds',
    'vllm:e2e_request_latency_seconds',
    'vllm:request_queue_time_seconds',
    'vllm:request_inference_time_seconds',
    'vllm:prompt_tokens_total',
    'llavacode:soft_tokens_total',
    'vllm:prompt_tokens_cached_total',
    'vllm:generation_tokens_total',
    'vllm:request_prompt_tokens',
    'vllm:request_generation_tokens',
    'vllm:request_success_total',
    'llavacode:requests_refused_total',
    'llavacode:requests_shed_total',
    'llavacode:requests_inflight',
    'llavacode:completion_events_total',
    'llavacode:quality_ladder_total',
    'llavacode:lingering_streams',
    'llavacode:typed_through_total',
    'llavacode:replays_total',
    'llavacode:replays_exhausted_total',
    'llavacode:workers_usable',
    'llavacode:workers_by_device',
    'llavacode:stage_seconds',
    'llavacode:requests_degraded_total',
    'llavacode:chunks_retrieved_total',
    'llavacode:store_circuit_open',
    'llavacode:store_rows_total',
    'llavacode:prefill_placed_total',
    'vllm:num_requests_waiting',
    'vllm:num_preemptions_total',
    'llavacode:waiting_tokens',
    'llavacode:gateways_alive',
    'llavacode:limit_checks_total',
    'llavacode:sequences_inflight',
    'llavacode:sequences_requeued_total',
    'llavacode:store_rows_left_out_total',
  ],
  prefill: PREFILL,
  decode: DECODE,
  colocated: [...new Set([...PREFILL, ...DECODE])],
  indexer: [
    ...EVERYWHERE,
    'llavacode:index_last_success_seconds',
    'llavacode:device_info',
    'llavacode:index_runs_total',
    'llavacode:skipped_files_total',
    'llavacode:encode_batch_seconds',
    'llavacode:chunks_unparsed_total',
    'llavacode:indexed_chunks_total',
  ],
};
/** Names of vLLM that several roles measure: each worker says what it does itself, as each of vLLM's engines does. */
const PER_PROCESS = [
  'vllm:num_requests_waiting',
  'vllm:num_requests_running',
  'vllm:kv_cache_usage_perc',
  'vllm:cache_config_info',
];

describe('the exposition', () => {
  it.each(Object.keys(EXPORTED) as MetricsService[])(
    'the exposition of %s holds what it measures, and nothing else',
    async (service) => {
      const { text } = await exportedBy(service);
      expect(namesIn(text).toSorted()).toEqual(EXPORTED[service].toSorted());
    },
  );

  it('every metric of the table stands in the exposition of some service, under its name, help and type', async () => {
    const texts: string[] = [];
    for (const service of ['gateway', 'colocated', 'indexer'] as const) texts.push((await exportedBy(service)).text);
    expect((await exportedBy('gateway')).type).toContain('text/plain; version=0.0.4');
    for (const { name, help, type } of all) {
      const head = `# HELP ${name} ${help}\n# TYPE ${name} ${type.toLowerCase()}\n`;
      expect(
        texts.some((text) => text.includes(head)),
        name,
      ).toBe(true);
    }
  });

  it('no name of vLLM is measured in two roles, unless it says what one process does', () => {
    const shared = Object.values(metrics).filter((metric) => measuredBy(metric).length > 1);
    const names = shared.map((metric) => metricFacts(metric).name).filter((name) => name.startsWith('vllm:'));
    expect(names.toSorted()).toEqual(PER_PROCESS.toSorted());
  });

  it('the histograms of what a request waits have bounds between 2.5 and 10 s and beyond the deadline of 60 s', async () => {
    const { text } = await exportedBy('gateway');
    for (const name of ['time_to_first_token', 'e2e_request_latency', 'request_queue_time']) {
      const bounds = [...text.matchAll(new RegExp(`^vllm:${name}_seconds_bucket\\{le="([\\d.]+)"`, 'gm'))];
      const seconds = bounds.map((match) => Number(match[1]));
      expect(seconds.filter((bound) => bound > 2.5 && bound < 10).length, name).toBeGreaterThanOrEqual(4);
      expect(seconds.filter((bound) => bound > 30 && bound <= 60).length, name).toBeGreaterThanOrEqual(2);
      expect(Math.max(...seconds), name).toBeGreaterThan(60);
    }
  });

  it('a metric counts under its name, labelled with service and model', async () => {
    const gateway = await exportedBy('gateway', 'tiny-coder');
    gateway.metrics.promptTokens.inc(12);
    gateway.metrics.success.inc({ finished_reason: 'stop' }, 2);
    gateway.observeTraced(gateway.metrics.ttft, 0.004, undefined);
    const { text } = await gateway.exposition();
    const labels = 'service="gateway",model_name="tiny-coder"';
    expect(text).toContain(`\nvllm:prompt_tokens_total{${labels}} 12\n`);
    expect(text).toContain(`\nvllm:request_success_total{finished_reason="stop",${labels}} 2\n`);
    expect(text).toContain(`\nvllm:time_to_first_token_seconds_bucket{le="0.005",${labels}} 1\n`);
    expect(text).toContain(`\nvllm:time_to_first_token_seconds_bucket{le="0.0025",${labels}} 0\n`);
    expect(text).toContain('\nprocess_resident_memory_bytes{');
  });

  it('a bucket names the trace of its newest value to those who ask for OpenMetrics, and no metric changes by that', async () => {
    const gateway = await exportedBy('gateway', 'tiny-coder');
    const trace = 'ab'.repeat(16);
    gateway.observeTraced(gateway.metrics.ttft, 0.004, trace);
    gateway.observeTraced(gateway.metrics.ttft, 0.04, undefined);
    gateway.metrics.promptTokens.inc(3);
    const before = await gateway.exposition();
    const accept = 'application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3';
    const { text, type } = await gateway.exposition(accept);
    expect(type).toContain('application/openmetrics-text; version=1.0.0');
    const labels = 'service="gateway",model_name="tiny-coder"';
    expect(text).toMatch(
      new RegExp(
        `^vllm:time_to_first_token_seconds_bucket\\{le="0.005",${labels}\\} 1 # \\{trace_id="${trace}"\\} 0.004 `,
        'm',
      ),
    );
    expect(text.match(/# \{trace_id=/g)).toHaveLength(1);
    expect(text).toContain(`\n# TYPE vllm:prompt_tokens counter\nvllm:prompt_tokens_total{${labels}} 3\n`);
    expect(text.endsWith('\n# EOF\n')).toBe(true);
    const after = await gateway.exposition();
    const ours = ({ text }: { readonly text: string }) =>
      text.split('\n').filter((line) => /llavacode:|vllm:/.test(line));
    expect(ours(after)).toEqual(ours(before));
  });

  it('the first 1,000 tenants have values of their own, and the rest is one', async () => {
    const { tenantLabel } = await exportedBy('gateway');
    const names = Array.from({ length: 1_001 }, (_, i) => `tenant-${i}`);
    expect(names.map(tenantLabel)).toEqual([...names.slice(0, 1_000), 'other']);
    expect(tenantLabel('tenant-0')).toBe('tenant-0');
  });
});
