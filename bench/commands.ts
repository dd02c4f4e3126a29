/** The words after `llavacode bench`, and `llavacode plan`. What they run is loaded when they are run. */
import { join } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import { PACKAGE_ROOT } from '../services/lib/process/package-root.ts';
import { drillCommands } from './drills/command.ts';
import { engineCommand, handoffCommand } from './engine/command.ts';
import type { Workload } from './load/measure.ts';
import { ARRIVALS } from './measure/arrivals.ts';
import { parseSlo } from './measure/latency.ts';
import { benchWord, list, numbers, onlyModel, positive, RESULTS, share, typed, whole } from './options.ts';
import { recallCommand } from './retrieval/command.ts';
import { PINNINGS } from './system/cores.ts';
import { COLOCATED, type Deployment } from './system/system.ts';

/** `1:1,2:1`: prefill and decode workers. */
const splits = (text: string): Deployment[] =>
  list(text).map((item) => {
    const [prefill, decode] = item.split(':').map(whole);
    if (!prefill || !decode) throw new InvalidArgumentError(`${item} must be like 2:1 (prefill:decode workers).`);
    return { mode: 'disaggregated', prefill, decode };
  });

/** A bench of whole systems. */
const bench = (name: string, description: string): Command =>
  benchWord(name, description)
    .option('--models <list>', 'bundles, checkpoints or names of published shapes', list, [
      join(PACKAGE_ROOT, 'models', 'tiny-coder'),
    ])
    .option('--precision <p>', 'of bundles that are made', 'int4')
    .option('--prefill-precision <p>', 'of their weights for prompts: same or w8a8')
    .option('--path <dir>', 'repository that prompts and chunks come from', join(PACKAGE_ROOT, 'examples', 'shop'))
    .option('--repo <name>', "its name in the index; the folder's own when not given")
    .option('--url <url>', 'a system that runs already, instead of starting one (its index holds --repo)')
    .option('--cores <list>', 'cores to use, like 0-3; all when not given')
    .option('--slots <n>', 'KV slots of a worker', whole, 8)
    .option('--capacity <n>', 'tokens of a slot', whole, 4096)
    .option('--timeout-ms <n>', 'a request that takes longer has failed', whole, 120_000)
    .option('--seed <n>', 'of arrivals, order and cursors', whole, 1);

/** What a request of a load is like. */
const withWorkload = (command: Command) =>
  command
    .addOption(new Option('--arrivals <kind>').choices(ARRIVALS).default('poisson'))
    .option('--burstiness <shape>', 'of gamma arrivals: 1 is Poisson, below 1 bursty, above 1 even', positive, 1)
    .option('--requests <n>', 'of one run, warm-up included', whole, 40)
    .option('--warmup <n>', 'first requests that do not count', whole, 4)
    .option('--prompt-tokens <n>', 'of the whole prompt', whole, 500)
    .option('--output-tokens <n>', 'of every answer', whole, 24)
    .addOption(new Option('--context <mode>').choices(['compressed', 'text', 'off']).default('compressed'))
    .option('--cancel-rate <share>', 'of requests that hang up', share, 0)
    .option('--cancel-within-ms <n>', 'when they do, at random', whole, 1000);

export function benchCommand(): Command {
  const all = new Command('bench').description('measure a system through its HTTP API; see bench/README.md');
  all.addCommand(
    bench('tables', "the paper's Tables 4, 8, 9, 10 and 11")
      .option('--rounds <n>', 'at most', whole, 6)
      .option('--minutes <n>', 'no further round begins that would end later', positive, 20)
      .action(async ({ rounds, minutes, ...flags }) => {
        const { runTables } = await import('./tables/run.ts');
        await runTables(typed(flags), { models: flags.models, rounds, budgetMinutes: minutes });
      }),
  );
  all.addCommand(loadCommand());
  all.addCommand(
    bench('interference', 'running streams while long prompts arrive, in both modes')
      .option('--streams <n>', 'that run', whole, 4)
      .option('--prompt-tokens <n>', 'of the prompts that arrive', whole, 2000)
      .option('--every-ms <n>', 'between two of them; 1.5 times what one takes when not given', positive)
      .option('--window-seconds <n>', 'of the quiet and of the busy time; 20, or 8 prompts when not given', positive)
      .action(async ({ streams, promptTokens, everyMs, windowSeconds, ...flags }) => {
        const { runInterference } = await import('./interference/run.ts');
        const windowMs = windowSeconds === undefined ? undefined : 1000 * windowSeconds;
        const how = { streams, promptTokens, streamPromptTokens: 200, outputTokens: 4, windowMs };
        const { capacity, timeoutMs } = flags;
        await runInterference(typed(flags), onlyModel(flags.models), { ...how, capacity, timeoutMs }, everyMs);
      }),
  );
  all.addCommand(
    bench('breakdown', 'where the time of a request goes')
      .option('--code-tokens <n>', 'of the prompt without its context', whole, 2000)
      .option('--output-tokens <n>', 'of every answer', whole, 16)
      .option('--requests <n>', 'per mode and context', whole, 8)
      .action(async ({ codeTokens, outputTokens, requests, ...flags }) => {
        const { runBreakdown } = await import('./breakdown/run.ts');
        await runBreakdown(typed(flags), onlyModel(flags.models), { codeTokens, outputTokens, requests });
      }),
  );
  for (const command of storeCommands()) all.addCommand(command);
  all.addCommand(
    bench('typing', 'an editing session, keystroke by keystroke')
      .option('--debounce-ms <n>', 'a pause that asks for a completion', whole, 200)
      .option('--output-tokens <n>', 'at most', whole, 16)
      .option('--contexts <list>', 'compressed, text, off', list, ['compressed', 'text'])
      .addOption(
        new Option('--pace <kind>', 'as typed, or waiting for each answer')
          .choices(['typed', 'answered'])
          .default('typed'),
      )
      .option('--prompt-orders <list>', 'psm, spm: see --prompt-order of the gateway', list, ['psm'])
      .option('--keystrokes <n>', 'of the session, the first; all when not given', whole)
      .action(async ({ debounceMs, outputTokens, contexts, pace, promptOrders, keystrokes, ...flags }) => {
        const { runTyping } = await import('./typing/run.ts');
        const how = { pace, debounceMs, outputTokens, contexts, promptOrders, keystrokes };
        await runTyping(typed(flags), onlyModel(flags.models), how);
      }),
  );
  all.addCommand(engineCommand()).addCommand(handoffCommand());
  for (const command of [...drillCommands(), ...allCommands()]) all.addCommand(command);
  return all;
}

function loadCommand(): Command {
  return withWorkload(bench('load', 'open-loop load on both modes: one rate, several, a trace, or a sweep'))
    .option('--slo <bounds>', 'like ttft:500,tpot:50; three times the unloaded figures when not given', parseSlo)
    .option('--rate <list>', 'requests per second; a sweep for the highest one when not given', numbers, [])
    .option('--probes <n>', 'rates that a sweep tries', whole, 6)
    .option('--seconds <n>', 'of one run, instead of --requests', positive)
    .option('--target-ttft-ms <n>', 'what would wait longer is refused; nothing when not given: queues show', positive)
    .option('--trace <file>', "JSON lines in Mooncake's format, instead of a rate")
    .option('--splits <list>', 'prefill:decode workers to compare with one colocated worker', splits, splits('1:1'))
    .addOption(new Option('--pinning <kind>').choices(PINNINGS).default('split'))
    .action(async ({ slo, rate, probes, seconds, targetTtftMs, trace, splits, pinning, ...flags }) => {
      const { runLoad } = await import('./load/run.ts');
      const deployments = [COLOCATED, ...splits];
      const workload = { ...workloadOf(flags), seconds };
      await runLoad(typed(flags), {
        model: onlyModel(flags.models),
        deployments,
        pinning,
        workload,
        slo,
        rates: rate,
        probes,
        targetTtftMs,
        trace,
      });
    });
}

function workloadOf(flags: Workload): Workload {
  const { arrivals, burstiness, requests, warmup, promptTokens, outputTokens } = flags;
  const { context, cancelRate, cancelWithinMs, timeoutMs, seed } = flags;
  const size = { requests, warmup, promptTokens, outputTokens, context };
  return { arrivals, burstiness, ...size, cancelRate, cancelWithinMs, timeoutMs, seed };
}

function storeCommands(): Command[] {
  return [
    bench('retrieval', 'top-k latency against the number of chunks')
      .option('--sizes <list>', 'chunks', numbers, [1000, 10_000, 100_000])
      .option('--queries <n>', 'per size', whole, 500)
      .option('--top-k <n>', 'chunks to find', whole, 10)
      .option('--redis <url>', 'measure this one too; it is written to')
      .action(async ({ sizes, queries, topK, redis, ...flags }) => {
        const { runRetrieval } = await import('./retrieval/run.ts');
        await runRetrieval(typed(flags), { sizes, queries, topK, redis });
      }),
    recallCommand(),
    bench('index', 'how fast a repository is encoded').action(async (flags) => {
      const { runIndexing } = await import('./indexing/run.ts');
      await runIndexing(typed(flags), flags.models);
    }),
  ];
}

function allCommands(): Command[] {
  const readme = join('bench', 'README.md');
  return [
    bench('all', 'every bench once, within a time budget, and bench/README.md made anew')
      .option('--minutes <n>', 'in all, roughly, without making bundles', positive, 40)
      .option('--quick', 'as little as shows that everything runs: --minutes 1')
      .option('--slo <bounds>', 'as of bench load')
      .option('--redis <url>', 'as of bench retrieval')
      .option('--readme <file>', 'whose generated part is replaced', readme)
      .action(async ({ minutes, quick, slo, redis, readme, ...flags }, command: Command) => {
        const { runAll } = await import('./all.ts');
        const own = ['models', 'name', 'json'];
        const given = Object.entries(flags).filter(
          ([name]) => command.getOptionValueSource(name) === 'cli' && !own.includes(name),
        );
        const how = { models: flags.models, minutes: quick ? 1 : minutes, slo, redis, readme };
        await runAll(typed(flags), { ...how, given: Object.fromEntries(given) });
      }),
    new Command('report')
      .description('bench/README.md anew from the artifacts')
      .option('--out <dir>', 'where they lie', RESULTS)
      .option('--readme <file>', 'whose generated part is replaced', readme)
      .action(async ({ out, readme }) => {
        const { writeReadme } = await import('./readme.ts');
        const { drawAll } = await import('./harness/run.ts');
        await writeReadme(readme, out);
        await drawAll(out);
      }),
  ];
}

export function planCommand(): Command {
  return bench('plan', 'how many prefill and decode workers a load needs, from rates measured on this machine')
    .requiredOption('--rate <list>', 'requests per second', numbers)
    .option('--prompt-tokens <n>', 'of the whole prompt', whole, 500)
    .option('--output-tokens <n>', 'of every answer', whole, 24)
    .option('--slo <bounds>', 'like ttft:500,tpot:50; that of --load, or three times the unloaded figures', parseSlo)
    .option('--load <file>', 'artifact of bench load to hold the simulation against')
    .action(async ({ rate: rates, promptTokens, outputTokens, slo, load, ...flags }) => {
      const { runPlan } = await import('./plan/run.ts');
      const measure = { promptTokens: [250, 500, 1000, 2000], batches: [1, 2, 4, 8], repeats: 3, decodeTokens: 256 };
      await runPlan(typed(flags), {
        model: onlyModel(flags.models),
        rates,
        promptTokens,
        outputTokens,
        slo,
        load,
        measure,
      });
    });
}
