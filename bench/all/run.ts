/**
 * Runs `bench all`: every bench of the whole system once, within a time budget, and then makes the pages anew. The
 * tables measure all models in one run; other benches run once per model. Benches whose length can be chosen get a
 * share of the budget (rounds of the tables, requests of the load sweep); the others are short.
 */
import { join } from 'node:path';
import { BREAKDOWN_COMMAND } from '../breakdown/command.ts';
import { runBreakdown } from '../breakdown/run.ts';
import { INDEX_COMMAND } from '../indexing/command.ts';
import { runIndexing } from '../indexing/run.ts';
import { INTERFERENCE_COMMAND } from '../interference/command.ts';
import { runInterference } from '../interference/run.ts';
import { LOAD_COMMAND } from '../load/command.ts';
import { runLoad } from '../load/run.ts';
import { parseSlo } from '../measure/latency.ts';
import {
  type CommandSpec,
  commandText,
  defaultsOf,
  type OptionsOf,
  type OptionTable,
  pick,
  RUN_OPTIONS,
  type RunOptions,
  SYSTEM_OPTIONS,
} from '../options.ts';
import { PLAN_COMMAND } from '../plan/command.ts';
import { runPlan } from '../plan/run.ts';
import { assertPages, writePages } from '../readme.ts';
import { RETRIEVAL_COMMAND } from '../retrieval/command.ts';
import { runRetrieval } from '../retrieval/run.ts';
import { TABLES_COMMAND } from '../tables/command.ts';
import { runTables } from '../tables/run.ts';
import { TYPING_COMMAND } from '../typing/command.ts';
import { runTyping } from '../typing/run.ts';
import { ALL_ONLY_OPTIONS, type AllOptions } from './command.ts';

type Given = Readonly<Record<string, unknown>>;

/** Share of the whole budget that the tables get. */
const TABLES_SHARE = 0.5;
/** A budget of this many minutes per model gives full sizes; with a smaller one they shrink in proportion. */
const FULL_MINUTES = 20;

/** @param given options that the user gave, which the command of every single run repeats. */
export async function runAll(options: AllOptions, given: Given): Promise<void> {
  await assertPages(options.readme); // before hours of measuring, not after
  const minutes = options.quick ? 1 : options.minutes;
  const scale = Math.min(1, minutes / options.models.length / FULL_MINUTES);
  const single = new SingleRuns(options, given);
  const scaled = (count: number, least: number) => Math.max(least, Math.round(count * scale));

  const sizes = scale === 1 ? [1000, 10_000, 100_000] : [1000, 10_000];
  const { redis } = options;
  await runRetrieval(single.options(RETRIEVAL_COMMAND, { sizes, queries: scaled(500, 50), topK: 10, redis }));
  // The encoder is the same with every model, so it is measured with one.
  const first = new SingleRuns({ ...options, models: options.models.slice(0, 1) }, given);
  await runIndexing(first.options(INDEX_COMMAND, { chunks: scaled(24, 4), rounds: scaled(3, 1) }));
  await runTables(single.options(TABLES_COMMAND, { rounds: 20, minutes: minutes * TABLES_SHARE }));
  for (const model of options.models) await runModel(single.of(model), options, scale, scaled);
  await writePages(options.readme, options.out);
}

async function runModel(
  single: SingleRuns,
  { out, slo: bounds }: AllOptions,
  scale: number,
  scaled: (count: number, least: number) => number,
): Promise<void> {
  const slo = bounds === undefined ? undefined : parseSlo(bounds);
  const breakdown = { codeTokens: 2000, outputTokens: 16, requests: scaled(8, 2) };
  await runBreakdown(single.options(BREAKDOWN_COMMAND, breakdown));
  const windowSeconds = scale === 1 ? undefined : scaled(20_000, 3000) / 1000;
  await runInterference(single.options(INTERFERENCE_COMMAND, { windowSeconds }));
  await runTyping(single.options(TYPING_COMMAND, { contexts: ['compressed'], keystrokes: scaled(213, 40) }));
  const load = single.options(LOAD_COMMAND, { requests: scaled(40, 12), probes: scaled(6, 3), slo });
  await runLoad(load);
  const measured = join(out, `${load.name ?? LOAD_COMMAND.name}.json`);
  await runPlan(single.options(PLAN_COMMAND, { load: measured, rate: [1, 10, 100, 10_000], slo }));
}

/** Makes the options of single runs: each is recorded with the command that makes it alone. */
class SingleRuns {
  readonly #all: AllOptions;
  readonly #given: Given;
  /** The model of runs for one model. */
  readonly #model: string | undefined;

  constructor(all: AllOptions, given: Given, model?: string) {
    this.#all = all;
    this.#given = given;
    this.#model = model;
  }

  /** Runs for one model: they have its name in theirs if there are several models. */
  of(model: string): SingleRuns {
    return new SingleRuns(this.#all, this.#given, model);
  }

  /** @param changes options that differ from their defaults, or that the recorded command should show. */
  options<Table extends OptionTable>(
    { name: bench, options: table }: CommandSpec<Table>,
    changes: Partial<OptionsOf<Table>>,
  ): OptionsOf<Table> & RunOptions {
    const models = this.#model === undefined ? this.#all.models : [this.#model];
    const name = this.#model !== undefined && this.#all.models.length > 1 ? `${bench}-${this.#model}` : undefined;
    const own = new Set([...Object.keys(ALL_ONLY_OPTIONS), 'models', 'name', 'json']);
    const repeated = Object.fromEntries(Object.entries(this.#given).filter(([name]) => !own.has(name)));
    const words = bench === PLAN_COMMAND.name ? bench : `bench ${bench}`;
    return {
      ...defaultsOf(table),
      ...pick(SYSTEM_OPTIONS, this.#all),
      ...pick(RUN_OPTIONS, this.#all),
      ...changes,
      models,
      name,
      json: undefined,
      command: commandText(words, { ...repeated, models, name, ...changes }),
    };
  }
}
