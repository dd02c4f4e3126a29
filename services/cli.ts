#!/usr/bin/env node
/** The `llavacode` command: which words start what. Settings of services come from the table in process/config.ts. */
import { writeFile } from 'node:fs/promises';
import { Command, Option } from 'commander';
import { benchCommand, planCommand } from '../bench/commands.ts';
import { count } from '../bench/options.ts';
import { COLOCATED_SETTINGS, runColocated } from './colocated/main.ts';
import { DECODE_SETTINGS, runDecode } from './decode/main.ts';
import { runDemo } from './demo.ts';
import { runExport, runSynth } from './export.ts';
import { GATEWAY_SETTINGS, runGateway } from './gateway/main.ts';
import { INDEX_SETTINGS, runIndex } from './indexer/index-command.ts';
import { INDEXER_SETTINGS, runIndexer } from './indexer/main.ts';
import { SHAPES } from './lib/model/checkpoint/synth.ts';
import { type Config, flagName, loadConfig, SETTINGS, type Setting } from './lib/process/config.ts';
import { ServingError } from './lib/process/errors.ts';
import { Interrupted } from './lib/process/interrupt.ts';
import { DEFAULT_TENANT } from './lib/rag/store/repo-key.ts';
import { PREFILL_SETTINGS, runPrefill } from './prefill/main.ts';
import { MODES } from './supervisor.ts';
import { runUp, UP_SETTINGS, upDefaults } from './up.ts';

const program = new Command('llavacode')
  .description('Code completion where repository context costs 10 prompt tokens instead of 500.')
  .showHelpAfterError()
  .configureHelp({ showGlobalOptions: true });

const PRECISIONS = ['fp32', 'fp16', 'int8', 'mixed', 'int4'];

/** Adds the flags of `settings`; what is not given as a flag comes from LLAVACODE_* or the default. */
function withSettings(command: Command, settings: readonly Setting[]): Command {
  for (const setting of settings) {
    const schema = SETTINGS[setting];
    const initial = schema.safeParse(undefined);
    const hint = initial.success && initial.data !== '' ? ` (default: ${initial.data})` : '';
    const value = initial.success && typeof initial.data === 'boolean' ? '[true|false]' : '<value>';
    command.addOption(new Option(`${flagName(setting)} ${value}`, `${schema.description}${hint}`));
  }
  return command;
}

/** A command that is one service. */
function service<const K extends readonly Setting[]>(
  name: string,
  description: string,
  settings: K,
  run: (config: Config<K[number]>) => Promise<void>,
): void {
  withSettings(program.command(name).description(description), settings).action((flags: Record<string, unknown>) =>
    run(loadConfig<K[number]>(settings, flags)),
  );
}

service('gateway', 'serve HTTP and send work to the workers', GATEWAY_SETTINGS, runGateway);
service('prefill', 'compute prompts and hand over their KV caches', PREFILL_SETTINGS, runPrefill);
service('indexer', 'index the repositories that the gateway is sent', INDEXER_SETTINGS, runIndexer);
service('decode', 'continue sequences from handed-over KV caches', DECODE_SETTINGS, runDecode);
service('colocated', 'prefill and decode in one process, on one engine', COLOCATED_SETTINGS, runColocated);

withSettings(program.command('up').description('the whole system on one machine, one process per service'), UP_SETTINGS)
  .addOption(new Option('--mode <mode>').choices(MODES).default('disaggregated'))
  .option('--prefill <n>', 'prefill workers (in colocated mode: workers)', count, 1)
  .option('--decode <n>', 'decode workers', count, 1)
  .option('--pin', 'give each worker cores of its own (Linux)')
  .addOption(new Option('--precision <p>', 'of a checkpoint').choices(PRECISIONS).default('fp32'))
  .option('--data <dir>', 'where bundles and logs lie, and the index where no --store says otherwise', '.llavacode')
  .option('--index <dir>', 'repository to index at start, under the name of its folder')
  .action(async ({ mode, prefill, decode, pin, precision, data, index, ...flags }) => {
    await runUp(loadConfig(UP_SETTINGS, flags, { ...upDefaults(data), ...process.env }), {
      mode,
      prefill,
      decode,
      pin,
      precision,
      data,
      index,
    });
  });

withSettings(program.command('index').description('(re)index a repository'), INDEX_SETTINGS)
  .requiredOption('--name <repo>', 'name of the repository in requests')
  .requiredOption('--path <dir>', 'folder to index')
  .option('--tenant <name>', 'whose repository it is', DEFAULT_TENANT)
  .option('--watch', 'stay, and index what changes')
  .option('--json <file>', 'write the report there')
  .action(async ({ name, path, tenant, watch = false, json, ...flags }) => {
    const config = loadConfig(INDEX_SETTINGS, flags);
    await report(json, await runIndex(config, { tenant, repo: name, dir: path, watch }));
  });

program
  .command('export')
  .description('Hugging Face folders → a model bundle')
  .requiredOption('--llm <dir>', 'language model')
  .option('--encoder <dir>', 'encoder of chunks; the language model itself when not given')
  .option('--projector <path>', "projector; the language model's projector/ when not given")
  .requiredOption('--to <dir>', 'the bundle')
  .addOption(new Option('--precision <p>').choices(PRECISIONS).default('fp32'))
  .addOption(new Option('--prefill-precision <p>', 'weights for prompts').choices(['same', 'w8a8']))
  .option('--block <n>', 'weights that share a scale: 128 for speed, 32 for quality', count)
  .addOption(new Option('--encoder-pooling <pooling>').choices(['last', 'mean']))
  .addOption(
    new Option(
      '--encoder-recipe <recipe>',
      "of a language model: published appends end-of-text and pools there, authors (the paper's) pools the last code token",
    ).choices(['published', 'authors']),
  )
  .addOption(new Option('--encoder-modality <m>', 'what UniXcoder reads of a chunk').choices(['source', 'ast']))
  .option('--encoder-max-tokens <n>', 'tokens of a chunk that the encoder sees', count)
  .option('--max-positions <n>', 'longest sequence', count)
  .option('--name <name>', 'name under which it is served')
  .option('--verify', 'compare with 32-bit floats on real code: KL divergence and top-1 agreement')
  .option('--json <file>', 'write manifest and figures there')
  .action(async ({ verify, json, ...options }) => {
    await report(json, await runExport(options, verify === true));
  });

program
  .command('synth')
  .description('a bundle of a published shape with seeded random weights, for benchmarks')
  .requiredOption('--llm <shape>', `${Object.keys(SHAPES).join(', ')}, or a config.json`)
  .requiredOption('--to <dir>', 'the bundle')
  .addOption(new Option('--precision <p>').choices(PRECISIONS).default('int4'))
  .addOption(new Option('--prefill-precision <p>', 'weights for prompts').choices(['same', 'w8a8']))
  .option('--block <n>', 'weights that share a scale', count)
  .option('--seed <n>', 'of the weights', count, 1)
  .option('--json <file>', 'write the manifest there')
  .action(async ({ json, ...options }) => {
    await report(json, await runSynth(options));
  });

program
  .command('demo')
  .description('three completions of one cursor: without context, with text, with compressed context')
  .option('--json <file>', 'write the figures there')
  .action(async ({ json }) => {
    await report(json, await runDemo());
  });

program.addCommand(benchCommand()).addCommand(planCommand());

async function report(file: string | undefined, figures: unknown): Promise<void> {
  if (file !== undefined) await writeFile(file, `${JSON.stringify(figures, null, 2)}\n`);
}

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof Interrupted) process.exit(error.exitCode);
  const failure = ServingError.from(error);
  process.stderr.write(`llavacode: ${failure.code}: ${failure.message}\n${failure.kind.remedy}\n`);
  if (failure.code === 'internal') process.stderr.write(`${failure.stack}\n`);
  process.exit(1);
}
