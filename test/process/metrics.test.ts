import { describe, expect, it } from 'vitest';
import { collectProcessMetrics, exposition, expositionType, metrics } from '../../services/lib/process/metrics.ts';
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
  'vllm:request_queue_time_seconds',
  'vllm:request_prefill_time_seconds',
  'vllm:request_decode_time_seconds',
  'vllm:kv_cache_usage_perc',
  'vllm:prefix_cache_queries_total',
  'vllm:prefix_cache_hits_total',
];

describe('the metrics table', () => {
  it('is documented whole, and nothing else is', () => {
    expect(documented('metrics')).toEqual(all.map(({ name }) => name));
  });

  it("uses under vllm: only vLLM's own names", () => {
    expect(all.map(({ name }) => name).filter((name) => name.startsWith('vllm:') && !VLLM.includes(name))).toEqual([]);
  });

  it.each(all)('$name follows the naming rules of Prometheus', ({ name, help, labelNames, type }) => {
    expect(name).toMatch(/^(vllm|llavacode):[a-z][a-z0-9_]*$/);
    expect(name).not.toMatch(/_(sum|count|bucket|ms|milliseconds|us|kb|mb)$/);
    expect(name.endsWith('_total')).toBe(type === 'Counter');
    expect(help).not.toBe('');
    for (const label of labelNames) {
      expect(label).toMatch(/^[a-z][a-z0-9_]*$/);
      expect(['le', 'quantile', 'service', 'model_name']).not.toContain(label);
    }
  });
});

describe('the exposition', () => {
  it('holds every metric under the name, type and help of the table', async () => {
    const text = await exposition();
    expect(expositionType).toContain('text/plain; version=0.0.4');
    for (const { name, help, type } of all) {
      expect(text).toContain(`# HELP ${name} ${help}\n# TYPE ${name} ${type.toLowerCase()}\n`);
    }
  });

  it('counts under the same name, labelled with service and model', async () => {
    collectProcessMetrics('gateway', 'tiny-coder');
    metrics.promptTokens.inc(12);
    metrics.success.inc({ finished_reason: 'stop' }, 2);
    metrics.ttft.observe(0.004);
    const text = await exposition();
    const labels = 'service="gateway",model_name="tiny-coder"';
    expect(text).toContain(`\nvllm:prompt_tokens_total{${labels}} 12\n`);
    expect(text).toContain(`\nvllm:request_success_total{finished_reason="stop",${labels}} 2\n`);
    expect(text).toContain(`\nvllm:time_to_first_token_seconds_bucket{le="0.005",${labels}} 1\n`);
    expect(text).toContain(`\nvllm:time_to_first_token_seconds_bucket{le="0.0025",${labels}} 0\n`);
    expect(text).toContain('\nprocess_resident_memory_bytes{');
  });
});
