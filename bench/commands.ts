/**
 * The commands after `llavacode bench`, `llavacode plan`, `llavacode evaluate` and `llavacode acceptance`. A bench
 * declares its options in its own command.ts; the code that measures is loaded when the command runs, and not for
 * `--help`.
 */
import { Command } from 'commander';
import { acceptanceCommand as acceptance } from './acceptance/command.ts';
import { ALL_COMMAND, README, readmeOption } from './all/command.ts';
import { BREAKDOWN_COMMAND } from './breakdown/command.ts';
import { DASHBOARDS_COMMAND } from './dashboards/command.ts';
import { DRILLS_COMMAND, SOAK_COMMAND } from './drills/command.ts';
import { ENGINE_COMMAND, HANDOFF_COMMAND } from './engine/command.ts';
import { FAIRNESS_COMMAND } from './fairness/command.ts';
import { GPU_COMMAND } from './gpu/command.ts';
import { INDEX_COMMAND } from './indexing/command.ts';
import { INTERFERENCE_COMMAND } from './interference/command.ts';
import { LOAD_COMMAND } from './load/command.ts';
import { OBSERVABILITY_COMMAND } from './observability/command.ts';
import { makeCommand, RESULTS } from './options.ts';
import { PEERS_COMMAND } from './peers/command.ts';
import { PLAN_COMMAND } from './plan/command.ts';
import { EVALUATE_COMMAND } from './quality/command.ts';
import { DENSE_COMMAND, RECALL_COMMAND, RETRIEVAL_COMMAND } from './retrieval/command.ts';
import { SPECULATION_COMMAND } from './speculation/command.ts';
import { START_COMMAND } from './start/command.ts';
import { TABLES_COMMAND } from './tables/command.ts';
import { TRAINING_COMMAND } from './training/command.ts';
import { TYPING_COMMAND } from './typing/command.ts';

export function benchCommand(): Command {
  const bench = new Command('bench').description('measure a system through its HTTP API; see bench/README.md');
  const commands = [
    makeCommand(TABLES_COMMAND, async (options) => (await import('./tables/run.ts')).runTables(options)),
    makeCommand(LOAD_COMMAND, async (options) => (await import('./load/run.ts')).runLoad(options)),
    makeCommand(INTERFERENCE_COMMAND, async (options) =>
      (await import('./interference/run.ts')).runInterference(options),
    ),
    makeCommand(BREAKDOWN_COMMAND, async (options) => (await import('./breakdown/run.ts')).runBreakdown(options)),
    makeCommand(OBSERVABILITY_COMMAND, async (options) =>
      (await import('./observability/run.ts')).runObservability(options),
    ),
    makeCommand(DASHBOARDS_COMMAND, async (options) => (await import('./dashboards/run.ts')).runDashboards(options)),
    makeCommand(RETRIEVAL_COMMAND, async (options) => (await import('./retrieval/run.ts')).runRetrieval(options)),
    makeCommand(DENSE_COMMAND, async (options) => (await import('./retrieval/run.ts')).runDense(options)),
    makeCommand(RECALL_COMMAND, async (options) => (await import('./retrieval/run.ts')).runRecall(options)),
    makeCommand(INDEX_COMMAND, async (options) => (await import('./indexing/run.ts')).runIndexing(options)),
    makeCommand(TYPING_COMMAND, async (options) => (await import('./typing/run.ts')).runTyping(options)),
    makeCommand(ENGINE_COMMAND, async (options) => (await import('./engine/run.ts')).runEngine(options)),
    makeCommand(HANDOFF_COMMAND, async (options) => (await import('./engine/run.ts')).runHandoff(options)),
    makeCommand(PEERS_COMMAND, async (options) => (await import('./peers/run.ts')).runPeers(options)),
    makeCommand(GPU_COMMAND, async (options, given) => (await import('./gpu/run.ts')).runGpu(options, given)),
    makeCommand(TRAINING_COMMAND, async (options) => (await import('./training/run.ts')).runTraining(options)),
    makeCommand(FAIRNESS_COMMAND, async (options) => (await import('./fairness/run.ts')).runFairness(options)),
    makeCommand(SPECULATION_COMMAND, async (options) => (await import('./speculation/run.ts')).runSpeculation(options)),
    makeCommand(START_COMMAND, async (options) => (await import('./start/run.ts')).runStart(options)),
    makeCommand(DRILLS_COMMAND, async (options) => (await import('./drills/run.ts')).runDrillsBench(options)),
    makeCommand(SOAK_COMMAND, async (options) => (await import('./drills/run.ts')).runSoakBench(options)),
    makeCommand(ALL_COMMAND, async (options, given) => (await import('./all/run.ts')).runAll(options, given)),
    reportCommand(),
  ];
  for (const command of commands) bench.addCommand(command);
  return bench;
}

export const planCommand = (): Command =>
  makeCommand(PLAN_COMMAND, async (options) => (await import('./plan/run.ts')).runPlan(options));

export const evaluateCommand = (): Command =>
  makeCommand(EVALUATE_COMMAND, async (options) => (await import('./quality/run.ts')).runEvaluate(options));

export const acceptanceCommand = (): Command =>
  acceptance(async (options) => (await import('./acceptance/run.ts')).runAcceptanceCommand(options));

const reportCommand = () =>
  new Command('report')
    .description('make bench/README.md, its pages and the charts anew from the artifacts')
    .option('--out <dir>', 'folder of the artifacts', RESULTS)
    .option('--readme <file>', readmeOption.description, README)
    .action(async ({ out, readme }: { out: string; readme: string }) => {
      const { drawAll, writePages } = await import('./readme.ts');
      await writePages(readme, out);
      await drawAll(out);
    });
