/**
 * Every metric of every service, in one table. This is the only importer of prom-client. Names under `vllm:` are vLLM's
 * own, so that dashboards made for it work; other metrics are under `llavacode:`. Names stand here as they are scraped:
 * prom-client does not add `_total` to a counter.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

/** Buckets in seconds. They begin at 1 ms because some stages of a completion are that short. */
const SECONDS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30,
];
const TOKENS = [1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

export const registry = new Registry();

const histogram = <L extends string>(name: string, help: string, labelNames: readonly L[] = [], buckets = SECONDS) =>
  new Histogram({ name, help, labelNames, buckets, registers: [registry] });
const counter = <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
  new Counter({ name, help, labelNames, registers: [registry] });
const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
  new Gauge({ name, help, labelNames, registers: [registry] });

export const metrics = {
  // Gateway.
  ttft: histogram(
    'vllm:time_to_first_token_seconds',
    'Time from the request being received to its first token being written',
  ),
  tpot: histogram(
    'vllm:request_time_per_output_token_seconds',
    '(time of last token - time of first token) / (output tokens - 1), per choice',
  ),
  itl: histogram('vllm:inter_token_latency_seconds', 'Time between two tokens of one choice'),
  e2e: histogram(
    'vllm:e2e_request_latency_seconds',
    'Time from the request being received to the last byte of its answer',
  ),
  inference: histogram(
    'vllm:request_inference_time_seconds',
    'Time from the prompt leaving the queue to the last token',
  ),
  promptTokens: counter(
    'vllm:prompt_tokens_total',
    'Prompt tokens that went to prefill, soft tokens and those of requests that failed or were given up included',
  ),
  softTokens: counter('llavacode:soft_tokens_total', 'Soft tokens among the prompt tokens'),
  cachedTokens: counter('vllm:prompt_tokens_cached_total', 'Prompt tokens whose KV was reused'),
  generationTokens: counter(
    'vllm:generation_tokens_total',
    'Output tokens, those of requests that failed or were given up included',
  ),
  requestPromptTokens: histogram(
    'vllm:request_prompt_tokens',
    'Prompt tokens of one request that succeeded',
    [],
    TOKENS,
  ),
  requestGenerationTokens: histogram(
    'vllm:request_generation_tokens',
    'Output tokens of one request that succeeded',
    [],
    TOKENS,
  ),
  success: counter('vllm:request_success_total', 'Choices that finished, by reason', ['finished_reason']),
  refused: counter('llavacode:requests_refused_total', 'Requests that ended in an error, by code', ['code']),
  shed: counter(
    'llavacode:requests_shed_total',
    'Requests refused before work, by the limit that was reached (`knob` repeats `limit`, and goes with the next release)',
    ['limit', 'knob'],
  ),
  replays: counter('llavacode:replays_total', 'Parts of requests done again by other workers, by reason', ['reason']),
  replaysExhausted: counter(
    'llavacode:replays_exhausted_total',
    'Requests that failed because --max-replays was used up, by reason',
    ['reason'],
  ),
  workersUsable: gauge('llavacode:workers_usable', 'Workers that this gateway gives work to, by role', ['role']),
  stage: histogram('llavacode:stage_seconds', 'Time of one stage of a request', ['stage']),
  degraded: counter(
    'llavacode:requests_degraded_total',
    'Completions that went on without context, or (no_room) with less of it, by reason',
    ['reason'],
  ),
  retrieved: counter('llavacode:chunks_retrieved_total', 'Chunks that stood in prompts, by mode', ['mode']),
  storeCircuitOpen: gauge(
    'llavacode:store_circuit_open',
    '1 while the store is not asked because it failed or was slow, else 0',
  ),
  storeRows: counter('llavacode:store_rows_total', 'Rows of chunks that were read, by where they lay: cache or store', [
    'source',
  ]),
  prefillPlaced: counter(
    'llavacode:prefill_placed_total',
    'Prompts by where they were computed, and the reason for it',
    ['where', 'reason'],
  ),
  // Gateway and workers.
  running: gauge('vllm:num_requests_running', 'Requests that are being worked on'),
  waiting: gauge('vllm:num_requests_waiting', 'Requests that wait'),
  // Workers.
  queueTime: histogram('vllm:request_queue_time_seconds', 'Time that a request waited in this worker'),
  prefixQueries: counter('vllm:prefix_cache_queries_total', 'Prompt tokens that were looked for in the prefix cache'),
  prefixHits: counter('vllm:prefix_cache_hits_total', 'Prompt tokens that were found in the prefix cache'),
  prefillTime: histogram('vllm:request_prefill_time_seconds', 'Time that computing one prompt took'),
  decodeTime: histogram('vllm:request_decode_time_seconds', 'Time from joining the batch to the last token'),
  stepTime: histogram('llavacode:decode_step_seconds', 'Time that one step of the decode batch took'),
  batchSize: histogram('llavacode:decode_batch_size', 'Sequences in one decode step', [], [1, 2, 4, 8, 16, 32, 64]),
  waitingTokens: gauge('llavacode:waiting_tokens', 'Prompt tokens that wait in this worker'),
  kvUsage: gauge('vllm:kv_cache_usage_perc', 'Share of KV slots in use, 0 to 1'),
  stagedBytes: gauge('llavacode:kv_staged_bytes', 'Bytes of KV cache held for decoders that have not taken it yet'),
  stagedAge: gauge('llavacode:kv_staged_oldest_seconds', 'Age of the oldest staged KV cache'),
  leasesEnded: counter('llavacode:kv_leases_ended_total', 'Leases of staged KV caches that ended, by reason', [
    'reason',
  ]),
  handoffTime: histogram('llavacode:kv_handoff_seconds', 'Time from the first pull to the last verified frame'),
  handoffExposed: histogram(
    'llavacode:kv_handoff_exposed_seconds',
    'The part of the hand-over that came after prefill had finished',
  ),
  handoffBytes: counter('llavacode:kv_handoff_bytes_total', 'Bytes of KV cache that were pulled'),
  // Indexer.
  indexRuns: counter('llavacode:index_runs_total', 'Index runs by how they ended: ok or an error code', ['outcome']),
  skippedFiles: counter('llavacode:skipped_files_total', 'Files that were not indexed, by reason', ['reason']),
  encodeTime: histogram(
    'llavacode:encode_batch_seconds',
    'Time that one batch of chunks took in encoder and projector',
  ),
  unparsedChunks: counter(
    'llavacode:chunks_unparsed_total',
    'Chunks that were encoded as source text because no syntax tree was found',
  ),
  indexedChunks: counter('llavacode:indexed_chunks_total', 'Chunks by what was done with them', ['outcome']),
} as const;

/** Sets the caller's part of a gauge that sums several parts, such as the two queues of one process. */
export function partOf(gauge: Gauge): (value: number) => void {
  let last = 0;
  return (value) => {
    gauge.inc(value - last);
    last = value;
  };
}

/** The text that Prometheus scrapes, in its own format. */
export const exposition = () => registry.metrics();
export const expositionType = registry.contentType;

/**
 * Puts the label `service` on every metric, and `model_name` where a model is served, because vLLM's dashboards
 * select by it. Adds the metrics of the process itself (CPU, memory, event-loop lag). Each service's main calls this
 * once.
 */
export function collectProcessMetrics(service: string, modelName?: string): void {
  registry.setDefaultLabels(modelName === undefined ? { service } : { service, model_name: modelName });
  collectDefaultMetrics({ register: registry });
}
