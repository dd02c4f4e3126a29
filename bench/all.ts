/**
 * `llavacode bench all`: every bench of the whole system once, within a time budget, and the README made anew. The tables
 * are for all models at once, the others for one after the other. What a bench gets is a share of the budget where its
 * length can be chosen (rounds of the tables, requests of the load sweep); the others are short.
 */
import { join } from 'node:path';
import { runBreakdown } from './breakdown/run.ts';
import type { BenchOptions } from './harness/systems.ts';
import { runIndexing } from './indexing/run.ts';
import { runInterference } from './interference/run.ts';
import type { Workload } from './load/measure.ts';
import { runLoad } from './load/run.ts';
import { parseSlo, type Slo } from './measure/latency.ts';
import { runPlan } from './plan/run.ts';
import { placeInReadme, writeReadme } from './readme.ts';
import { runRetrieval } from './retrieval/run.ts';
import { BOTH } from './system/system.ts';
import { runTables } from './tables/run.ts';
import { runTyping, type TypingPlan } from './typing/run.ts';

export interface AllOptions {
  readonly models: readonly string[];
  readonly minutes: number;
  readonly slo: string | undefined;
  readonly redis: string | undefined;
  readonly readme: string;
  /** Options that were given, which every run's own command then has as well. */
  readonly given: Flags;
}

type Flags = Readonly<Record<string, unknown>>;

/** Of the whole budget. */
const TABLES_SHARE = 0.5;
/** A typical completion of an editor: a short prompt, one line. */
const PROMPT_TOKENS = 500;
const OUTPUT_TOKENS = 24;
/** A budget of so many minutes for each model gives the sizes below; a smaller one less. */
const FULL_MINUTES = 20;

export async function runAll(options: BenchOptions, all: AllOptions): Promise<void> {
  await placeInReadme(all.readme); // before hours of measuring, not after
  const { models } = all;
  const minutes = all.minutes / models.length;
  const scale = Math.min(1, minutes / FULL_MINUTES);
  const scaled = (count: number, least: number) => Math.max(least, Math.round(count * scale));
  const slo: Slo | undefined = all.slo === undefined ? undefined : parseSlo(all.slo);
  // Each run is recorded with the command that makes it alone.
  const as = (words: string, flags: Flags): BenchOptions => {
    const name = flags['name'] as string | undefined;
    return { ...options, name, json: undefined, command: commandOf(words, { ...all.given, ...flags }) };
  };

  const retrieval = { sizes: [1000, 10_000, ...(scale === 1 ? [100_000] : [])], queries: scaled(500, 50), topK: 10 };
  await runRetrieval(as('bench retrieval', { ...retrieval, redis: all.redis }), { ...retrieval, redis: all.redis });
  await runIndexing(as('bench index', { models }), models);
  const tables = { rounds: 20, minutes: all.minutes * TABLES_SHARE };
  await runTables(as('bench tables', { models, ...tables }), { models, ...tables, budgetMinutes: tables.minutes });

  for (const model of models) {
    const of = (bench: string) => ({ models: model, name: models.length > 1 ? `${bench}-${model}` : bench });
    const breakdown = { codeTokens: 2000, outputTokens: 16, requests: scaled(8, 2) };
    await runBreakdown(as('bench breakdown', { ...of('breakdown'), ...breakdown }), model, breakdown);
    const window = scale === 1 ? {} : { windowMs: scaled(20_000, 3000) };
    await runInterference(
      as('bench interference', { ...of('interference'), windowSeconds: window.windowMs && window.windowMs / 1000 }),
      model,
      {
        ...{ streams: 4, streamPromptTokens: 200, promptTokens: 2000, outputTokens: 4, ...window },
        ...{ capacity: options.capacity, timeoutMs: options.timeoutMs },
      },
    );
    const typing = {
      ...{ pace: 'typed', debounceMs: 200, outputTokens: 16, contexts: ['compressed'], promptOrders: ['psm'] },
      keystrokes: scaled(213, 40),
    } satisfies TypingPlan;
    await runTyping(as('bench typing', { ...of('typing'), ...typing }), model, typing);
    const requests = scaled(40, 12);
    const probes = scaled(6, 3);
    const workload: Workload = {
      ...{ arrivals: 'poisson', burstiness: 1, requests, warmup: 4, cancelRate: 0, cancelWithinMs: 1000 },
      ...{ promptTokens: PROMPT_TOKENS, outputTokens: OUTPUT_TOKENS, context: 'compressed' },
      ...{ timeoutMs: options.timeoutMs, seed: options.seed },
    };
    const load = of('load');
    await runLoad(as('bench load', { ...load, requests, probes, slo: all.slo }), {
      ...{ model, deployments: BOTH, pinning: 'split', workload, slo, rates: [], probes },
      ...{ trace: undefined, targetTtftMs: undefined },
    });
    const measured = join(options.out, `${load.name}.json`);
    const rates = [1, 10, 100, 10_000];
    await runPlan(as('plan', { ...of('plan'), load: measured, rate: rates, slo: all.slo }), {
      ...{ model, rates, promptTokens: PROMPT_TOKENS, outputTokens: OUTPUT_TOKENS, slo, load: measured },
      measure: { promptTokens: [250, 500, 1000, 2000], batches: [1, 2, 4, 8], repeats: 3, decodeTokens: 256 },
    });
  }
  await writeReadme(all.readme, options.out);
}

/** As one would type it; what is undefined is left out. */
export function commandOf(words: string, flags: Flags): string {
  const given = Object.entries(flags).filter(([, value]) => value !== undefined);
  const kebab = (name: string) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  return ['llavacode', words, ...given.map(([name, value]) => `--${kebab(name)} ${value}`)].join(' ');
}
