/**
 * Every metric of every service, in one table. This is the only importer of prom-client. Names under `vllm:` are vLLM's
 * own, so that dashboards made for it work; those under `gen_ai_` are OpenTelemetry's, in the form that Prometheus
 * gives them; other metrics are under `llavacode:`. Names stand here as they are scraped:
 * prom-client does not add `_total` to a counter.
 *
 * Each metric says which roles measure it, and a process exports only what its role measures: a gauge that is always 0
 * because nobody sets it would spoil every average over targets. What a request has once is measured by the gateway
 * alone. A name that several roles measure means what the process itself does, so that a sum over targets is right.
 */
import {
  Counter,
  collectDefaultMetrics,
  Gauge,
  Histogram,
  type Metric,
  type OpenMetricsContentType,
  Registry,
} from 'prom-client';
import { BUILD_INFO } from './build-info.ts';
import { LAG_FIGURE_NAMES, LAG_RESOLUTION_MS, LoopLag } from './loop-lag.ts';

/** The work of a process. A colocated worker does both prefill and decode. */
export type MetricsRole = 'gateway' | 'prefill' | 'decode' | 'indexer';

const ROLES = {
  gateway: ['gateway'],
  prefill: ['prefill'],
  decode: ['decode'],
  colocated: ['prefill', 'decode'],
  indexer: ['indexer'],
} as const satisfies Record<string, readonly MetricsRole[]>;

/** The services that export metrics. */
export type MetricsService = keyof typeof ROLES;

/** Bounds in seconds for one step of work. They begin at 1 ms because some stages of a completion are that short. */
const STEP_SECONDS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30,
];
/**
 * Bounds in seconds for what lasts up to as long as a request: close to one another up to the default of
 * --target-ttft-ms (10 s), and on to twice the default of --request-timeout-ms (60 s).
 */
const REQUEST_SECONDS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 7.5, 10,
  15, 20, 30, 40, 50, 60, 90, 120,
];
/** Bounds in seconds that OpenTelemetry's conventions for generative AI give for servers. */
const GEN_AI_SECONDS = {
  duration: [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92],
  ttft: [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10],
  tpot: [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5],
};
const GEN_AI_LABELS = ['gen_ai_operation_name', 'gen_ai_provider_name', 'gen_ai_request_model'] as const;
/** Fewer bounds for what is kept for each of up to 1,000 tenants. */
const TENANT_TTFT_SECONDS = [0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30];
const TENANT_TPOT_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1];
const TOKENS = [1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

const registry = new Registry();
/** Labels of every metric of this process. */
let labels: Record<string, string> = {};
const rolesOf = new Map<object, readonly MetricsRole[]>();

/** Makes metrics that `roles` measure. They are registered once it is known which service the process is. */
function measuredIn(...roles: readonly MetricsRole[]) {
  const noted = <M extends object>(metric: M): M => {
    rolesOf.set(metric, roles);
    return metric;
  };
  return {
    histogram: <L extends string>(
      name: string,
      help: string,
      buckets: readonly number[],
      labelNames: readonly L[] = [],
    ) => noted(new Histogram({ name, help, labelNames, buckets: [...buckets], registers: [] })),
    /** A histogram whose buckets name the trace of the newest value in each: {@link observeTraced}. */
    tracedHistogram: <L extends string>(
      name: string,
      help: string,
      buckets: readonly number[],
      labelNames: readonly L[] = [],
    ) =>
      noted(
        new Histogram<L | 'trace_id'>({
          ...{ name, help, labelNames, buckets: [...buckets] },
          registers: [],
          enableExemplars: true,
        }),
      ),
    counter: <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
      noted(new Counter({ name, help, labelNames, registers: [] })),
    gauge: <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
      noted(new Gauge({ name, help, labelNames, registers: [] })),
  };
}

const everywhere = measuredIn('gateway', 'prefill', 'decode', 'indexer');
const gateway = measuredIn('gateway');
const gatewayAndPrefill = measuredIn('gateway', 'prefill');
const gatewayAndWorkers = measuredIn('gateway', 'prefill', 'decode');
const workers = measuredIn('prefill', 'decode');
const prefill = measuredIn('prefill');
const decode = measuredIn('decode');
const indexer = measuredIn('indexer');

export const metrics = {
  buildInfo: everywhere.gauge('llavacode:build_info', 'Always 1; its labels say which build runs', [
    'version',
    'commit',
  ]),
  reloadFailures: everywhere.counter(
    'llavacode:reload_failures_total',
    'Times that changed files of keys or certificates were wrong, so that those before stayed in use, by set of files: ' +
      'api_keys, tls or rpc_tls',
    ['files'],
  ),
  reloadSuccess: everywhere.gauge(
    'llavacode:reload_success_timestamp_seconds',
    'When the files of keys or certificates in use were read (Unix time), by set of files',
    ['files'],
  ),
  auditLinesLost: gateway.counter(
    'llavacode:audit_lines_lost_total',
    'Lines of the audit log that could not be written',
  ),
  certificateNotAfter: everywhere.gauge(
    'llavacode:certificate_not_after_seconds',
    'When a certificate of this process ends, in seconds since 1970, by the setting that names its file',
    ['setting'],
  ),
  apiKeyNotAfter: gateway.gauge(
    'llavacode:api_key_not_after_seconds',
    'When the first of the API keys of a tenant ends that have an end, in seconds since 1970',
    ['tenant'],
  ),
  // Each of these exists once per request: the gateway alone measures it.
  ttft: gateway.tracedHistogram(
    'vllm:time_to_first_token_seconds',
    'Time from the request being received to its first token being written',
    REQUEST_SECONDS,
  ),
  tpot: gateway.tracedHistogram(
    'vllm:request_time_per_output_token_seconds',
    '(time of last token - time of first token) / (output tokens - 1), per choice of a request that succeeded',
    REQUEST_SECONDS,
  ),
  genAiDuration: gateway.tracedHistogram(
    'gen_ai_server_request_duration_seconds',
    'Time from the request being received to the last byte of its answer, refused and failed ones included',
    GEN_AI_SECONDS.duration,
    [...GEN_AI_LABELS, 'error_type'],
  ),
  genAiTtft: gateway.tracedHistogram(
    'gen_ai_server_time_to_first_token_seconds',
    'vllm:time_to_first_token_seconds under the name and with the bounds that OpenTelemetry gives it',
    GEN_AI_SECONDS.ttft,
    GEN_AI_LABELS,
  ),
  genAiTpot: gateway.tracedHistogram(
    'gen_ai_server_time_per_output_token_seconds',
    'vllm:request_time_per_output_token_seconds under the name and with the bounds that OpenTelemetry gives it',
    GEN_AI_SECONDS.tpot,
    GEN_AI_LABELS,
  ),
  tenantTtft: gateway.histogram(
    'llavacode:tenant_ttft_seconds',
    'Time to first token, by tenant (the first 1,000 that ask; the rest is `other`)',
    TENANT_TTFT_SECONDS,
    ['tenant'],
  ),
  tenantTpot: gateway.histogram(
    'llavacode:tenant_tpot_seconds',
    'Time per output token of choices that succeeded, by tenant',
    TENANT_TPOT_SECONDS,
    ['tenant'],
  ),
  tenantPromptTokens: gateway.counter('llavacode:tenant_prompt_tokens_total', 'Prompt tokens, by tenant', ['tenant']),
  tenantGenerationTokens: gateway.counter('llavacode:tenant_generation_tokens_total', 'Output tokens, by tenant', [
    'tenant',
  ]),
  tenantRequests: gateway.counter(
    'llavacode:tenant_requests_total',
    'Completions by tenant and by how they ended: ok or an error code, which says why they were refused',
    ['tenant', 'outcome'],
  ),
  desiredWorkers: gateway.gauge(
    'llavacode:desired_workers',
    'Workers that the load of this gateway over the last minute keeps 90 % busy, by role; a fraction: sum, then round up',
    ['role'],
  ),
  itl: gateway.histogram('vllm:inter_token_latency_seconds', 'Time between two tokens of one choice', REQUEST_SECONDS),
  e2e: gateway.histogram(
    'vllm:e2e_request_latency_seconds',
    'Time from the request being received to the last byte of its answer, for requests that succeeded',
    REQUEST_SECONDS,
  ),
  queueTime: gateway.histogram(
    'vllm:request_queue_time_seconds',
    'Time that the prompt of a request that succeeded waited, in the gateway and in the prefill worker',
    REQUEST_SECONDS,
  ),
  inference: gateway.histogram(
    'vllm:request_inference_time_seconds',
    'Time from the prompt leaving the queue to the last token, for requests that succeeded',
    REQUEST_SECONDS,
  ),
  promptTokens: gateway.counter(
    'vllm:prompt_tokens_total',
    'Prompt tokens sent to workers, soft tokens included; also those of requests that failed or were aborted',
  ),
  softTokens: gateway.counter('llavacode:soft_tokens_total', 'Soft tokens among the prompt tokens'),
  cachedTokens: gateway.counter('vllm:prompt_tokens_cached_total', 'Prompt tokens whose KV was reused'),
  generationTokens: gateway.counter(
    'vllm:generation_tokens_total',
    'Output tokens; also those of requests that failed or were aborted',
  ),
  requestPromptTokens: gateway.histogram(
    'vllm:request_prompt_tokens',
    'Prompt tokens of one request that succeeded: its sum is less than vllm:prompt_tokens_total if some did not',
    TOKENS,
  ),
  requestGenerationTokens: gateway.histogram(
    'vllm:request_generation_tokens',
    'Output tokens of one request that succeeded: its sum is less than vllm:generation_tokens_total if some did not',
    TOKENS,
  ),
  success: gateway.counter(
    'vllm:request_success_total',
    'Choices that finished, by reason: a request with n choices counts n times',
    ['finished_reason'],
  ),
  refused: gateway.counter('llavacode:requests_refused_total', 'Requests that ended in an error, by code', ['code']),
  shed: gateway.counter(
    'llavacode:requests_shed_total',
    'Requests refused because a limit was reached, by that limit (`knob` repeats `limit`, and goes with the next release)',
    ['limit', 'knob'],
  ),
  inflight: gateway.gauge('llavacode:requests_inflight', 'Requests in flight in this gateway, waiting ones included'),
  sequencesInflight: gateway.gauge(
    'llavacode:sequences_inflight',
    'Sequences (prompts × best_of) of the requests in flight in this gateway, which --max-inflight limits',
  ),
  limitChecks: gateway.counter(
    'llavacode:limit_checks_total',
    'Checks of the limits of a tenant, by where its use is counted: shared (in Redis) or local (in this gateway alone)',
    ['where'],
  ),
  gatewaysAlive: gateway.gauge(
    'llavacode:gateways_alive',
    'Gateways that share limits and sessions over Redis, this one included, as far as this one hears of them; 0 without',
  ),
  replays: gateway.counter('llavacode:replays_total', 'Parts of requests done again by other workers, by reason', [
    'reason',
  ]),
  replaysExhausted: gateway.counter(
    'llavacode:replays_exhausted_total',
    'Requests that failed because --max-replays was used up, by reason',
    ['reason'],
  ),
  typedThrough: gateway.counter(
    'llavacode:typed_through_total',
    'Requests that went on with the output of an earlier one, which was still being made (running) or was there (ended)',
    ['output'],
  ),
  lingering: gateway.gauge(
    'llavacode:lingering_streams',
    'Outputs that are being made although their clients have gone, since the next keystroke may ask for them',
  ),
  preemptions: gateway.counter(
    'vllm:num_preemptions_total',
    'Sequences that made way for a tenant with less than its share of the slots, and were continued later',
  ),
  sequencesRequeued: gateway.counter(
    'llavacode:sequences_requeued_total',
    'Sequences that went back to the queue because the worker that they were sent to was full',
  ),
  workersByDevice: gateway.gauge(
    'llavacode:workers_by_device',
    'Workers that this gateway sends requests to, by role and by what they compute on: cpu, webgpu, cuda or plugin',
    ['role', 'device'],
  ),
  workersUsable: gateway.gauge('llavacode:workers_usable', 'Workers that this gateway sends requests to, by role', [
    'role',
  ]),
  stage: gateway.histogram(
    'llavacode:stage_seconds',
    'Time of one stage of a request that succeeded, by stage',
    REQUEST_SECONDS,
    ['stage'],
  ),
  degraded: gateway.counter(
    'llavacode:requests_degraded_total',
    'Completions that went on without context, by reason',
    ['reason'],
  ),
  completionEvents: gateway.counter(
    'llavacode:completion_events_total',
    'Completions that editors have shown (view), that were taken (select) or not (dismiss), by the mode of their context',
    ['event', 'mode'],
  ),
  laddered: gateway.counter(
    'llavacode:quality_ladder_total',
    'Completions that were given context in fewer tokens because of the load, by the mode asked for and given',
    ['asked', 'given'],
  ),
  // What the two bundles of a rollout are compared by. Without one all requests are of the arm `stable`.
  armRequests: gateway.counter(
    'llavacode:arm_requests_total',
    'Completions by the bundle that served them (stable or candidate), and how they ended: ok or an error code',
    ['arm', 'outcome'],
  ),
  armTtft: gateway.histogram(
    'llavacode:arm_time_to_first_token_seconds',
    'Time from the request being received to its first token being written, by the bundle that served it',
    REQUEST_SECONDS,
    ['arm'],
  ),
  armDegraded: gateway.counter(
    'llavacode:arm_requests_degraded_total',
    'Completions that went on without context, by the bundle that served them and by reason',
    ['arm', 'reason'],
  ),
  armEvents: gateway.counter(
    'llavacode:arm_completion_events_total',
    'Completions that editors have shown (view), that were taken (select) or not (dismiss), by the bundle that served them',
    ['arm', 'event'],
  ),
  rolloutShare: gateway.gauge(
    'llavacode:rollout_share_ratio',
    'Share of the requests that the candidate of a rollout is to get, 0 to 1; 0 where there is none',
  ),
  rolloutFallbacks: gateway.counter(
    'llavacode:rollout_fallbacks_total',
    'Requests of the share of the candidate that the stable bundle served, because the candidate could not',
  ),
  rolloutRepositories: gateway.gauge(
    'llavacode:rollout_repositories',
    'Repositories by whether their side index for the candidate is of the version that is served: current or behind',
    ['state'],
  ),
  retrieved: gateway.counter('llavacode:chunks_retrieved_total', 'Chunks that stood in prompts, by mode', ['mode']),
  storeCircuitOpen: gateway.gauge(
    'llavacode:store_circuit_open',
    '1 while the store is not asked because it failed or was slow, else 0',
  ),
  storeRowsLeftOut: gateway.counter(
    'llavacode:store_rows_left_out_total',
    'Rows of chunks that are stored and were left out: damaged, too_large, or later (the retrieval had no bytes left)',
    ['reason'],
  ),
  storeRows: gateway.counter(
    'llavacode:store_rows_total',
    'Rows of chunks that were read, by where they lay: cache or store',
    ['source'],
  ),
  prefillPlaced: gateway.counter(
    'llavacode:prefill_placed_total',
    'Prompts by where they were computed, and the reason for it',
    ['where', 'reason'],
  ),
  // Each process has these for itself: a request is counted where it is at that moment.
  waiting: gatewayAndWorkers.gauge(
    'vllm:num_requests_waiting',
    'Prompts (gateway, prefill) or sequences (decode) that wait in this process',
  ),
  waitingTokens: gatewayAndPrefill.gauge('llavacode:waiting_tokens', 'Prompt tokens that wait in this process'),
  running: workers.gauge(
    'vllm:num_requests_running',
    'Prompts that this worker computes (prefill) and sequences in its batch (decode)',
  ),
  deviceInfo: measuredIn('prefill', 'decode', 'indexer').gauge(
    'llavacode:device_info',
    'Always 1; its labels say what the process computes on (cpu, webgpu, cuda or plugin), and why',
    ['kind', 'name', 'reason'],
  ),
  kvUsage: workers.gauge('vllm:kv_cache_usage_perc', 'Share of KV slots in use, 0 to 1'),
  cacheConfig: workers.gauge(
    'vllm:cache_config_info',
    "Always 1; its labels say how large the KV cache is, in vLLM's words: a block is a slot, block_size its tokens",
    ['block_size', 'num_gpu_blocks', 'cache_dtype'],
  ),
  prefixQueries: prefill.counter(
    'vllm:prefix_cache_queries_total',
    'Prompt tokens that were looked for in the prefix cache',
  ),
  prefixHits: prefill.counter('vllm:prefix_cache_hits_total', 'Prompt tokens that were found in the prefix cache'),
  kvDiskBytes: prefill.gauge(
    'llavacode:kv_disk_bytes',
    'Bytes of KV in the folder of --kv-disk-dir; workers that share a folder say the same',
  ),
  kvDiskWritten: prefill.counter('llavacode:kv_disk_written_bytes_total', 'Bytes of KV that were written to disk'),
  kvDiskRestored: prefill.counter(
    'llavacode:kv_disk_restored_tokens_total',
    'Prompt tokens whose KV was read from disk instead of computed',
  ),
  kvDiskReadTime: prefill.histogram(
    'llavacode:kv_disk_read_seconds',
    'Time that reading the KV of one prompt from disk took',
    STEP_SECONDS,
  ),
  kvDiskErrors: prefill.counter(
    'llavacode:kv_disk_errors_total',
    'Failures of the disk with KV, by operation: read or write; the worker goes on without it',
    ['operation'],
  ),
  kvDiskDamaged: prefill.counter(
    'llavacode:kv_disk_damaged_files_total',
    'Files of KV on disk that were not what their names say, and were deleted',
  ),
  kvDiskUnsaved: prefill.counter(
    'llavacode:kv_disk_unsaved_prompts_total',
    'Kept prompts whose slot was needed before all their KV was on disk',
  ),
  prefillTime: prefill.histogram(
    'vllm:request_prefill_time_seconds',
    'Time that computing one prompt took',
    REQUEST_SECONDS,
  ),
  stagedBytes: prefill.gauge(
    'llavacode:kv_staged_bytes',
    'Bytes of KV cache held for decoders that have not taken it yet',
  ),
  stagedAge: prefill.gauge('llavacode:kv_staged_oldest_seconds', 'Age of the oldest staged KV cache'),
  leasesEnded: prefill.counter('llavacode:kv_leases_ended_total', 'Leases of staged KV caches that ended, by reason', [
    'reason',
  ]),
  decodeTime: decode.histogram(
    'vllm:request_decode_time_seconds',
    'Time from joining the batch to the last token, per sequence',
    REQUEST_SECONDS,
  ),
  stepTime: decode.histogram(
    'llavacode:decode_step_seconds',
    'Time that one step of the decode batch took',
    STEP_SECONDS,
  ),
  batchSize: decode.histogram('llavacode:decode_batch_size', 'Sequences in one decode step', [1, 2, 4, 8, 16, 32, 64]),
  drafts: decode.counter('vllm:spec_decode_num_drafts_total', 'Verify runs, by the source of what was proposed', [
    'source',
  ]),
  draftTokens: decode.counter('vllm:spec_decode_num_draft_tokens_total', 'Tokens that were proposed, by source', [
    'source',
  ]),
  acceptedTokens: decode.counter(
    'vllm:spec_decode_num_accepted_tokens_total',
    'Tokens that were proposed and are those that steps would have given, by source',
    ['source'],
  ),
  acceptedPerPosition: decode.counter(
    'vllm:spec_decode_num_accepted_tokens_per_pos_total',
    'Accepted tokens by their place in the draft, from 0',
    ['position'],
  ),
  handoffTime: decode.histogram(
    'llavacode:kv_handoff_seconds',
    'Time from the first pull to the last verified frame',
    REQUEST_SECONDS,
  ),
  handoffExposed: decode.histogram(
    'llavacode:kv_handoff_exposed_seconds',
    'The part of the hand-over that came after prefill had finished',
    REQUEST_SECONDS,
  ),
  handoffBytes: decode.counter('llavacode:kv_handoff_bytes_total', 'Bytes of KV cache that were pulled'),
  indexRuns: indexer.counter('llavacode:index_runs_total', 'Index runs by how they ended: ok or an error code', [
    'outcome',
  ]),
  lastIndexRun: indexer.gauge(
    'llavacode:index_last_success_seconds',
    'When an index run of this process succeeded last, in seconds since 1970; 0 before the first one',
  ),
  skippedFiles: indexer.counter('llavacode:skipped_files_total', 'Files that were not indexed, by reason', ['reason']),
  encodeTime: indexer.histogram(
    'llavacode:encode_batch_seconds',
    'Time that one batch of chunks took in encoder and projector',
    STEP_SECONDS,
  ),
  unparsedChunks: indexer.counter(
    'llavacode:chunks_unparsed_total',
    'Chunks that were encoded as source text because no syntax tree was found',
  ),
  indexedChunks: indexer.counter('llavacode:indexed_chunks_total', 'Chunks by what was done with them', ['outcome']),
} as const;

/** The roles that measure a metric. */
export const measuredBy = (metric: object): readonly MetricsRole[] => rolesOf.get(metric) ?? [];

/** Sets the caller's part of a gauge that sums several parts, such as the two queues of one process. */
export function partOf(gauge: Gauge): (value: number) => void {
  let last = 0;
  return (value) => {
    gauge.inc(value - last);
    last = value;
  };
}

/** Tenants that have values of their own. Keys come from a file, but there is no end to how many it may have. */
const MOST_TENANTS = 1_000;
const tenants = new Set<string>();

/** The value of the label `tenant`: its name for the first 1,000 of this process, `other` for the rest. */
export function tenantLabel(tenant: string): string {
  if (tenants.size < MOST_TENANTS) tenants.add(tenant);
  return tenants.has(tenant) ? tenant : 'other';
}

/** @param traceId trace that the value's bucket points to from now on; undefined leaves it as it is. */
export function observeTraced<L extends string>(
  histogram: Histogram<L | 'trace_id'>,
  value: number,
  traceId: string | undefined,
  labels: Partial<Record<L, string>> = {},
): void {
  const exemplarLabels: Partial<Record<'trace_id', string>> = traceId === undefined ? {} : { trace_id: traceId };
  histogram.observe({ labels, value, exemplarLabels } as Parameters<typeof histogram.observe>[0]);
}

/**
 * The text that Prometheus scrapes.
 * @param accept header of the request: OpenMetrics, which alone can point to traces, if it names that; otherwise
 *   Prometheus' own format.
 */
export async function exposition(accept = ''): Promise<{ readonly text: string; readonly type: string }> {
  if (!/\bapplication\/openmetrics-text\b/.test(accept)) {
    return { text: await registry.metrics(), type: registry.contentType };
  }
  const openMetrics = new Registry<OpenMetricsContentType>();
  openMetrics.setContentType(Registry.OPENMETRICS_CONTENT_TYPE);
  openMetrics.setDefaultLabels(labels);
  for (const metric of registry.getMetricsAsArray()) openMetrics.registerMetric(viewOf(metric.name));
  return { text: await openMetrics.metrics(), type: openMetrics.contentType };
}

/**
 * A metric under a name of its own. prom-client takes `_total` off the names of counters that it writes as OpenMetrics,
 * for good: afterwards Prometheus' own format would lack it.
 */
function viewOf(name: string): Metric {
  const metric = registry.getSingleMetric(name) as Metric;
  return Object.defineProperty(Object.create(metric) as Metric, 'name', { value: name, writable: true });
}

/** A pause that no timer of prom-client's ends, in ms. */
const NEVER_MS = 2 ** 31 - 1;

/**
 * Exports the metrics that `service` measures, and those of the process itself (CPU, memory, event-loop lag). Puts the
 * label `service` on each, and `model_name` where a model is served, because vLLM's dashboards select by it. Each
 * service's main calls this once.
 */
export function collectProcessMetrics(service: MetricsService, modelName?: string): void {
  labels = modelName === undefined ? { service } : { service, model_name: modelName };
  registry.setDefaultLabels(labels);
  const roles: readonly MetricsRole[] = ROLES[service];
  for (const metric of Object.values(metrics)) {
    if (measuredBy(metric).some((role) => roles.includes(role))) registry.registerMetric(metric);
  }
  metrics.buildInfo.set({ ...BUILD_INFO }, 1);
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: NEVER_MS });
  exportLoopLag();
}

/**
 * Puts figures that cost nothing while the process is idle in the place of prom-client's. The others follow the first
 * one, which is collected before they are written.
 */
function exportLoopLag(): void {
  const lag = new LoopLag();
  const gauges = LAG_FIGURE_NAMES.map((figure, i) => {
    const name = `nodejs_eventloop_lag_${figure}_seconds`;
    registry.removeSingleMetric(name);
    const help = `Delay of a timer of ${LAG_RESOLUTION_MS} ms since the last scrape while the loop was busy: ${figure}.`;
    const collect = () => {
      const taken = lag.take();
      for (const [j, of] of LAG_FIGURE_NAMES.entries()) gauges[j]!.set(taken[of]);
    };
    return new Gauge({ name, help, registers: [registry], ...(i === 0 && { collect }) });
  });
}
