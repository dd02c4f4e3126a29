/**
 * `llavacode bench all`: every bench once, within a time budget, and the README made anew. The tables are for all models,
 * the others for the first one. What a bench gets is a share of the budget where its length can be chosen (rounds of the
 * tables, requests of the load sweep); the others are short.
 */
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../services/lib/process/config.ts';
import type { Workload } from '../load.ts';
import { parseSlo, type Slo } from '../measure/latency.ts';
import { writeReadme } from '../report/readme.ts';
import { COLOCATED, DISAGGREGATED } from '../system/system.ts';
import type { BenchOptions } from './context.ts';
import { runLoad } from './load.ts';
import { runPlan } from './plan.ts';
import { runBreakdown, runIndexing, runInterference, runRetrieval, runTyping } from './single.ts';
import { runTables } from './tables.ts';

export interface AllOptions {
  readonly models: readonly string[];
  readonly minutes: number;
  readonly slo: string | undefined;
  readonly redis: string | undefined;
  readonly readme: string;
}

/** Of the whole budget. */
const TABLES_SHARE = 0.5;
/** A typical completion of an editor: a short prompt, one line. */
const PROMPT_TOKENS = 500;
const OUTPUT_TOKENS = 24;
/** A budget of so many minutes gives the sizes below; a smaller one less. */
const FULL_MINUTES = 20;

export async function runAll(options: BenchOptions, all: AllOptions): Promise<void> {
  const [first] = all.models;
  const scale = Math.min(1, all.minutes / FULL_MINUTES);
  const scaled = (count: number, least: number) => Math.max(least, Math.round(count * scale));
  const slo: Slo | undefined = all.slo === undefined ? undefined : parseSlo(all.slo);
  // Each run is recorded with the command that makes it alone.
  const as = (words: string): BenchOptions => ({
    ...options,
    command: `llavacode ${words.replaceAll(`${PACKAGE_ROOT}/`, '')}`,
  });
  const models = all.models.join(',');

  await runRetrieval(as(`bench retrieval${all.redis ? ` --redis ${all.redis}` : ''}`), {
    sizes: [1000, 10_000, ...(scale === 1 ? [100_000] : [])],
    queries: scaled(500, 50),
    topK: 10,
    redis: all.redis,
  });
  await runIndexing(as(`bench index --models ${models}`), all.models);
  await runTables(as(`bench tables --models ${models} --minutes ${Math.round(all.minutes * TABLES_SHARE)}`), {
    models: all.models,
    rounds: 20,
    budgetMinutes: all.minutes * TABLES_SHARE,
  });
  await runBreakdown(as(`bench breakdown --models ${first}`), first!, {
    codeTokens: 1000,
    outputTokens: 16,
    requests: scaled(8, 2),
  });
  await runInterference(as(`bench interference --models ${first}`), first!, {
    streams: 4,
    streamPromptTokens: 200,
    promptTokens: 2000,
    outputTokens: 4,
    windowMs: scaled(20_000, 3000),
    capacity: options.capacity,
    timeoutMs: options.timeoutMs,
  });
  await runTyping(as(`bench typing --models ${first} --contexts compressed`), first!, {
    debounceMs: 200,
    outputTokens: 16,
    contexts: ['compressed'],
    seconds: scaled(40, 8),
  });
  const workload: Workload = {
    arrivals: 'poisson',
    burstiness: 1,
    requests: scaled(40, 12),
    warmup: 4,
    promptTokens: PROMPT_TOKENS,
    outputTokens: OUTPUT_TOKENS,
    context: 'compressed',
    cancelRate: 0,
    cancelWithinMs: 1000,
    timeoutMs: options.timeoutMs,
    seed: options.seed,
  };
  await runLoad(as(`bench load --models ${first} --requests ${workload.requests}`), {
    model: first!,
    deployments: [COLOCATED, DISAGGREGATED],
    pinning: 'split',
    workload,
    slo,
    rates: [],
    probes: scaled(6, 3),
    trace: undefined,
  });
  await runPlan(as(`plan --models ${first} --load ${join(options.out, 'load.json')} --rate 10,100,10000`), {
    model: first!,
    rates: [10, 100, 10_000],
    promptTokens: PROMPT_TOKENS,
    outputTokens: OUTPUT_TOKENS,
    slo,
    load: join(options.out, 'load.json'),
    measure: { promptTokens: [250, 500, 1000, 2000], batches: [1, 2, 4, 8], repeats: 3, decodeTokens: 256 },
  });
  await writeReadme(all.readme, options.out);
}
