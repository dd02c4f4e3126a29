#!/usr/bin/env node
/**
 * The `llavacode` command: which words start what. A word's code and options are loaded when that word is given, so
 * that `--help` is quick and a service's process holds nothing of the other services.
 */
import { constants } from 'node:fs';
import { access, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Command, CommanderError, Option } from 'commander';
import type { z } from 'zod';
import { BUILD_INFO } from './lib/process/build-info.ts';
import type { ConfigOf, SettingsTable } from './lib/process/config.ts';
import { count, countAmong } from './lib/process/count-argument.ts';
import { exitCodeOf, remedyAfter, ServingError } from './lib/process/errors.ts';
import { killIfExitHangs, orphaned } from './lib/process/exit.ts';
import { Interrupted } from './lib/process/interrupt.ts';
import { atPath, systemError } from './lib/process/os-errors.ts';
import { keepFilesPrivate } from './lib/process/private-files.ts';
import { AWAIT_SETTINGS, settingsFromSupervisor } from './lib/process/supervised.ts';
import { startTracing } from './lib/process/tracing.ts';
import type { RolloutAction } from './rollout-command.ts';

interface Word {
  readonly summary: string;
  /** The settings among its options; none where not given. */
  readonly settings?: () => Promise<SettingsTable>;
  /**
   * What it writes is for whoever its user shares files with: bundles and measurements, which hold nothing of clients.
   * What all other words write is for their user alone.
   */
  readonly writesForOthers?: boolean;
  /** Adds the word's options and what it does to `command`; where it returns another command, that one is taken. */
  build(command: Command): Promise<unknown>;
}

/** A word that is one service: its settings are its options. */
const service = <T extends SettingsTable>(
  summary: string,
  settings: () => Promise<T>,
  run: () => Promise<(config: ConfigOf<T>) => Promise<void>>,
): Word => ({
  summary,
  settings,
  build: async (command) => {
    const table = await settings();
    (await withSettings(command, table))
      .addOption(new Option(AWAIT_SETTINGS).hideHelp())
      .action(async ({ awaitSettings, ...flags }) => {
        const [later] = awaitSettings ? await Promise.all([settingsFromSupervisor(), run()]) : [];
        const config = await configOf(table, { ...flags, ...later });
        await startTracing(command.name(), process.env);
        await (await run())(config);
      });
  },
});

const WORDS: Readonly<Record<string, Word>> = {
  up: {
    summary: 'run the whole system on one machine, one process per service',
    settings: async () => (await import('./up.ts')).UP_SETTINGS,
    build: async (command) => {
      const { loadUpConfig, runUp, UP_SETTINGS } = await import('./up.ts');
      (await withSettings(command, UP_SETTINGS)).action(async (flags) => {
        await runUp(loadUpConfig(flags, await fileOf(flags)));
      });
    },
  },
  gateway: service(
    'serve HTTP and send work to the workers',
    async () => (await import('./gateway/settings.ts')).GATEWAY_SETTINGS,
    async () => (await import('./gateway/main.ts')).runGateway,
  ),
  prefill: service(
    'compute prompts and hand over their KV caches',
    async () => (await import('./prefill/settings.ts')).PREFILL_SETTINGS,
    async () => (await import('./prefill/main.ts')).runPrefill,
  ),
  decode: service(
    'continue sequences from handed-over KV caches',
    async () => (await import('./decode/settings.ts')).DECODE_SETTINGS,
    async () => (await import('./decode/main.ts')).runDecode,
  ),
  colocated: service(
    'prefill and decode in one process, on one engine',
    async () => (await import('./colocated/settings.ts')).COLOCATED_SETTINGS,
    async () => (await import('./colocated/main.ts')).runColocated,
  ),
  indexer: service(
    'index the repositories that the gateway is sent',
    async () => (await import('./indexer/settings.ts')).INDEXER_SETTINGS,
    async () => (await import('./indexer/main.ts')).runIndexer,
  ),
  index: {
    summary: 'index a repository, or index it again',
    settings: async () => (await import('./settings.ts')).INDEX_COMMAND_SETTINGS,
    build: buildIndex,
  },
  lsp: {
    summary: 'complete in an editor: a language server on stdin and stdout; see docs/lsp.md',
    settings: async () => (await import('./settings.ts')).LSP_COMMAND_SETTINGS,
    build: buildLsp,
  },
  export: { summary: 'make a model bundle from Hugging Face folders', writesForOthers: true, build: buildExport },
  bundle: { summary: 'check or measure a model bundle', writesForOthers: true, build: buildBundle },
  rollout: {
    summary: 'serve another bundle beside the one of a running system, promote it, or go back',
    build: buildRollout,
  },
  devices: {
    summary: 'list the devices that could compute, and check whether each computes a bundle right',
    settings: async () => (await import('./settings.ts')).DEVICES_SETTINGS,
    writesForOthers: true,
    build: buildDevices,
  },
  synth: {
    summary: 'make a bundle of a published shape with seeded random weights, for benchmarks',
    writesForOthers: true,
    build: buildSynth,
  },
  demo: {
    summary: 'complete at one cursor in three modes: without context, with text, with compressed context',
    build: async (command) => {
      command
        .option('--search', 'complete at every cursor of the sample repository instead, and count (ten minutes)')
        .option('--json <file>', 'write the figures there')
        .action(async ({ search, json }) => {
          const { runDemo, runDemoSearch } = await import('./demo.ts');
          await reported(json, () => (search ? runDemoSearch() : runDemo()));
        });
    },
  },
  dataset: {
    summary: 'make a data set to train projectors on; see docs/training.md',
    writesForOthers: true,
    build: async () => (await import('../training/dataset-command.ts')).datasetCommand(),
  },
  train: {
    summary: 'train a projector, or go on with a run; see docs/training.md',
    writesForOthers: true,
    build: async () => (await import('../training/command.ts')).trainCommand(),
  },
  ablate: {
    summary: "train and evaluate the rows of a table of the paper, or of one's own; see docs/training.md",
    writesForOthers: true,
    build: async () => (await import('../training/command.ts')).ablateCommand(),
  },
  sweep: {
    summary: 'search the learning rate and the weights of losses; see docs/training.md',
    writesForOthers: true,
    build: async () => (await import('../training/command.ts')).sweepCommand(),
  },
  acceptance: {
    summary: 'ask a deployment for every route in every case; see docs/acceptance.md',
    writesForOthers: true,
    build: async () => (await import('../bench/commands.ts')).acceptanceCommand(),
  },
  bench: {
    summary: 'measure a system through its HTTP API; see bench/README.md',
    writesForOthers: true,
    build: async () => (await import('../bench/commands.ts')).benchCommand(),
  },
  plan: {
    summary: 'say how many prefill and decode workers a load needs, from rates measured on this machine',
    writesForOthers: true,
    build: async () => (await import('../bench/commands.ts')).planCommand(),
  },
  evaluate: {
    summary: 'say how good completions are with and without context, on a benchmark; see docs/evaluation.md',
    writesForOthers: true,
    build: async () => (await import('../bench/commands.ts')).evaluateCommand(),
  },
};

async function buildIndex(command: Command): Promise<void> {
  const { INDEX_COMMAND_SETTINGS } = await import('./settings.ts');
  (await withSettings(command, INDEX_COMMAND_SETTINGS))
    .requiredOption('--path <dir>', 'folder to index')
    .option('--name <repo>', "name of the repository in requests (default: the folder's)")
    .option('--tenant <name>', 'with --store: tenant that the repository belongs to (default: default)')
    .option('--watch', 'stay, and index what changes')
    .option('--allow-empty', 'let a folder without files replace an index with files')
    .option('--json <file>', 'write the report there')
    .action(async ({ name, path, watch = false, allowEmpty = false, json, ...flags }) => {
      const config = await configOf(INDEX_COMMAND_SETTINGS, flags);
      const { assertEffective, runIndex } = await import('./index-command.ts');
      assertEffective(config, flags);
      const { tenant } = flags;
      await reported(json, () => runIndex(config, { tenant, repo: name, dir: path, watch, allowEmpty }));
    });
}

async function buildLsp(command: Command): Promise<void> {
  const { LSP_COMMAND_SETTINGS } = await import('./settings.ts');
  (await withSettings(command, LSP_COMMAND_SETTINGS))
    // Editors add these to the command of every language server.
    .addOption(new Option('--stdio', 'speak on stdin and stdout, as it does without this').hideHelp())
    .addOption(new Option('--clientProcessId <pid>', 'end with this process').hideHelp())
    .action(async (flags) => {
      const { runLsp } = await import('./lsp-command.ts');
      await runLsp(flags, await fileOf(flags));
    });
}

const KV = 'how KV lies on the CPU: as the model computes it, or in int8, a quarter of the memory of floats';
const PRECISION = 'precision of the weights; with fp16 the model also computes in 16 bits, as CUDA needs it';

async function buildExport(command: Command): Promise<void> {
  const choices = await import('./lib/model/bundle/choices.ts');
  const { ENCODER_MODALITIES, ENCODER_RECIPES, KV_FORMS, POOLINGS, PRECISIONS, PREFILL_PRECISIONS, SOFT_PER_CHUNK } =
    choices;
  command
    .requiredOption('--llm <path>', 'language model: a Hugging Face folder, or a .gguf file')
    .option('--encoder <dir>', 'encoder of chunks; the language model itself when not given')
    .option('--projector <path>', "projector; the language model's projector/ when not given")
    .requiredOption('--to <dir>', 'folder of the bundle')
    .addOption(new Option('--precision <p>', PRECISION).choices(PRECISIONS).default('fp32'))
    .addOption(
      new Option('--prefill-precision <p>', 'precision of the weights for prompts').choices(PREFILL_PRECISIONS),
    )
    .addOption(new Option('--kv <form>', KV).choices(KV_FORMS).default('floats' as const))
    .option(
      '--block <n>',
      'weights that share a scale: 128 for the speed of CPUs, 32 for quality and GPUs; when not given, ' +
        '32 for a .gguf file that has such blocks, otherwise by the precision',
      count,
    )
    .addOption(new Option('--encoder-pooling <pooling>', 'how the encoder pools tokens').choices(POOLINGS))
    .addOption(
      new Option(
        '--encoder-recipe <recipe>',
        "of a language model: published appends end-of-text and pools there, authors (the paper's) pools the last code token",
      ).choices(ENCODER_RECIPES),
    )
    .addOption(new Option('--encoder-modality <m>', 'what UniXcoder reads of a chunk').choices(ENCODER_MODALITIES))
    .option('--encoder-max-tokens <n>', 'tokens of a chunk that the encoder sees', count)
    .option(
      '--soft-per-chunk <k>',
      `soft tokens of one chunk, ${SOFT_PER_CHUNK.join(', ')}; what the projector says, or 1, when not given`,
      countAmong(SOFT_PER_CHUNK),
    )
    .option('--max-positions <n>', 'longest sequence, in tokens', count)
    .option('--name <name>', 'name under which it is served')
    .option('--verify', 'compare with 32-bit floats on real code: KL divergence and top-1 agreement')
    .option('--json <file>', 'write manifest and figures there')
    .action(async ({ verify, json, ...options }) => {
      const { runExport } = await import('./export.ts');
      await reported(json, () => runExport(options, verify === true));
    });
}

async function buildBundle(command: Command): Promise<void> {
  command
    .command('verify <dir>')
    .description('read every file of a bundle and compare it with the digests of its manifest')
    .option('--public-key <file>', 'PEM file of an Ed25519 key whose owner must have signed the bundle')
    .option('--json <file>', 'write what was verified there')
    .action(async (dir, { json, publicKey }) => verifyBundle(dir, json, { publicKey }));
  command
    .command('sign <dir>')
    .description('verify a bundle and sign its manifest, which has the digest of every file (manifest.sig)')
    .requiredOption('--key <file>', 'PEM file of the private Ed25519 key: openssl genpkey -algorithm ed25519')
    .option('--json <file>', 'write what was signed there')
    .action(async (dir, { json, key }) => verifyBundle(dir, json, { signWith: key }));
  command
    .command('sizes <dir>')
    .description('print what the memory of its services follows from, as values of the Helm chart')
    .action(async (dir) => {
      const [{ sizesYaml }, { openBundle }] = await Promise.all([
        import('./bundle-sizes.ts'),
        import('./lib/model/bundle/bundle.ts'),
      ]);
      const { manifest } = await openBundle(dir);
      process.stdout.write(sizesYaml(manifest));
    });
}

async function buildRollout(command: Command): Promise<void> {
  const { INDEX_CLIENT_SETTINGS } = await import('./indexer/settings.ts');
  const run = async (action: RolloutAction, { json, ...flags }: Record<string, unknown>) => {
    const config = await configOf(INDEX_CLIENT_SETTINGS, flags);
    const [{ runRollout }, { interruption }] = await Promise.all([
      import('./rollout-command.ts'),
      import('./lib/process/interrupt.ts'),
    ]);
    await reported(json as string | undefined, () => runRollout(config, action, interruption()));
  };
  const word = async (name: string, description: string) =>
    (await withSettings(command.command(name).description(description), INDEX_CLIENT_SETTINGS)).option(
      '--json <file>',
      'write what the gateway said there',
    );
  const leftOut = (value: string) => `not given: ${value} for a new candidate, unchanged for the one there is`;
  (await word('start', 'serve a bundle for a share of the requests, or change the share'))
    .requiredOption('--bundle <dir>', 'folder of the bundle, on every gateway')
    .option('--canary <percent>', `share of the requests that it gets (${leftOut('5')})`)
    .addOption(
      new Option('--by <what>', `what stays with one bundle (${leftOut('session')})`).choices(['session', 'tenant']),
    )
    .option(
      '--reembed-by <address>',
      `host:port of an indexer of the bundle, where its encoder or projector is another; empty ends re-embedding (${leftOut('none')})`,
    )
    .action(async ({ bundle, canary, by, reembedBy: indexer, ...flags }) => {
      const share = canary === undefined ? undefined : Number(canary);
      await run({ action: 'start', bundle, share, by, indexer }, flags);
    });
  (await word('status', 'say how the rollout stands')).action((flags) => run({ action: 'status' }, flags));
  (await word('promote', 'let the bundle serve all requests')).action((flags) => run({ action: 'promote' }, flags));
  (await word('rollback', 'let the bundle that the gateways were started with serve all requests')).action((flags) =>
    run({ action: 'rollback' }, flags),
  );
}

async function verifyBundle(
  dir: string,
  json: string | undefined,
  keys: { readonly publicKey?: string; readonly signWith?: string },
): Promise<void> {
  const [{ runBundleVerify }, { interruption }] = await Promise.all([
    import('./export.ts'),
    import('./lib/process/interrupt.ts'),
  ]);
  await reported(json, () => runBundleVerify(dir, { ...keys, signal: interruption() }));
}

async function buildDevices(command: Command): Promise<void> {
  const { DEVICES_SETTINGS } = await import('./settings.ts');
  (await withSettings(command, DEVICES_SETTINGS))
    .option('--json <file>', 'write what was found there')
    .action(async ({ json, ...flags }) => {
      const config = await configOf(DEVICES_SETTINGS, flags);
      const { runDevices } = await import('./devices.ts');
      await reported(json, () => runDevices(config));
    });
}

async function buildSynth(command: Command): Promise<void> {
  const [{ ENCODERS, SHAPES }, { KV_FORMS, PRECISIONS, PREFILL_PRECISIONS }] = await Promise.all([
    import('./lib/model/checkpoint/synth.ts'),
    import('./lib/model/bundle/choices.ts'),
  ]);
  command
    .requiredOption('--llm <shape>', `${Object.keys(SHAPES).join(', ')}, or a config.json`)
    .requiredOption('--to <dir>', 'folder of the bundle')
    .addOption(new Option('--precision <p>', PRECISION).choices(PRECISIONS).default('int4'))
    .addOption(
      new Option('--prefill-precision <p>', 'precision of the weights for prompts').choices(PREFILL_PRECISIONS),
    )
    .addOption(new Option('--kv <form>', KV).choices(KV_FORMS).default('floats' as const))
    .option('--block <n>', 'weights that share a scale; by the precision when not given', count)
    .addOption(
      new Option('--encoder <shape>', 'encoder: the published 28 layers, or a stand-in of 2, for fast indexing')
        .choices(Object.keys(ENCODERS) as (keyof typeof ENCODERS)[])
        .default('stand-in' as const),
    )
    .option('--seed <n>', 'seed of the weights', count, 1)
    .option('--json <file>', 'write the manifest there')
    .action(async ({ json, ...options }) => {
      const { runSynth } = await import('./export.ts');
      await reported(json, () => runSynth(options));
    });
}

/**
 * Adds the flags of a table, and --config. What is not given as a flag comes from LLAVACODE_*, the file or the
 * default.
 */
async function withSettings(command: Command, table: SettingsTable): Promise<Command> {
  const [{ flagName }, { SETTINGS }] = await Promise.all([import('./lib/process/config.ts'), import('./settings.ts')]);
  for (const [setting, type] of Object.entries<z.ZodType>({ config: SETTINGS.config, ...table })) {
    const initial = type.safeParse(undefined);
    const isList = initial.success && Array.isArray(initial.data);
    const known = initial.success && initial.data !== '' && initial.data !== undefined && !isList;
    const value = initial.success && typeof initial.data === 'boolean' ? '[true|false]' : '<value>';
    const hint = known ? ` (default: ${initial.data})` : '';
    const option = new Option(`${flagName(setting)} ${value}`, `${type.description}${hint}`);
    if (isList) option.argParser((path, before: readonly string[] = []) => [...before, path]);
    command.addOption(option);
  }
  return command;
}

async function fileOf(flags: Record<string, unknown>): Promise<Record<string, unknown>> {
  const { loadConfig, readConfigFile, SETTINGS } = await import('./settings.ts');
  return readConfigFile(loadConfig({ config: SETTINGS.config }, flags).config);
}

async function configOf<T extends SettingsTable>(table: T, flags: Record<string, unknown>): Promise<ConfigOf<T>> {
  const { loadConfig } = await import('./settings.ts');
  return loadConfig(table, flags, process.env, await fileOf(flags));
}

/**
 * Ends this command when the npm that started it is gone: `npm start` and `npx` do not pass on the signal that ends
 * them. A supervised process learns of its end from its parent.
 */
function endWithNpm(): void {
  if (process.env['npm_command'] === undefined || process.connected) return;
  orphaned('npm is gone').addEventListener('abort', () => process.kill(process.pid, 'SIGTERM'), { once: true });
}

/** Writes what `run` resolves with to the file of --json, if any. Whether that is possible is checked first. */
async function reported(file: string | undefined, run: () => Promise<unknown>): Promise<void> {
  if (file !== undefined) await atPath(`--json ${file}`, () => access(dirname(file), constants.W_OK));
  const figures = await run();
  if (file === undefined) return;
  await atPath(`--json ${file}`, () => writeFile(file, `${JSON.stringify(figures, null, 2)}\n`));
}

/** The words that take an option which the given one does not, in a sentence; '' where none does. */
async function takersOf({ code, message }: CommanderError): Promise<string> {
  const option = code === 'commander.unknownOption' ? /'(--[\w-]+)/.exec(message)?.[1] : undefined;
  if (option === undefined) return '';
  const { flagName } = await import('./lib/process/config.ts');
  const takers: string[] = [];
  for (const [word, { settings }] of Object.entries(WORDS)) {
    if (Object.keys((await settings?.()) ?? {}).some((name) => flagName(name) === option)) takers.push(word);
  }
  return takers.length === 0 ? '' : `${option} is an option of ${takers.join(', ')}.\n`;
}

const program = new Command('llavacode')
  .description('Code completion where repository context costs 10 prompt tokens instead of 500.')
  .version(BUILD_INFO.version)
  .showHelpAfterError('See llavacode --help.')
  .exitOverride()
  .configureHelp({ showGlobalOptions: true });

try {
  const given = process.argv.slice(2);
  if (!WORDS[given[0] ?? '']?.writesForOthers) keepFilesPrivate();
  for (const [name, { summary, build }] of Object.entries(WORDS)) {
    const command = new Command(name)
      .description(summary)
      .copyInheritedSettings(program)
      .showHelpAfterError(`See llavacode ${name} --help.`);
    const built = given.includes(name) ? await build(command) : undefined;
    program.addCommand(built instanceof Command ? built : command);
  }
  killIfExitHangs();
  endWithNpm();
  await program.parseAsync();
} catch (error) {
  if (error instanceof Interrupted) process.exit(error.exitCode);
  if (error instanceof CommanderError) {
    process.stderr.write(await takersOf(error)); // commander has said the rest
    process.exit(error.exitCode);
  }
  const failure = systemError(error) ?? ServingError.from(error);
  const remedy = remedyAfter(failure.message, failure.code, failure.remedy);
  process.stderr.write(`llavacode: ${failure.code}: ${failure.message}\n${remedy && `${remedy}\n`}`);
  if (failure.code === 'internal') process.stderr.write(`${failure.stack}\n`);
  process.exit(exitCodeOf(failure));
}
