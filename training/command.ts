/**
 * The options of `llavacode train` and `llavacode ablate`. The code that trains is loaded when the command runs, and
 * not for `--help`.
 */
import { availableParallelism } from 'node:os';
import { Command, InvalidArgumentError, Option } from 'commander';
import {
  ENCODER_MODALITIES,
  ENCODER_RECIPES,
  POOLINGS,
  SOFT_PER_CHUNK,
  type SoftPerChunk,
} from '../services/lib/model/bundle/choices.ts';
import { count, countAmong } from '../services/lib/process/count-argument.ts';
import {
  ALIGNMENT_FORMS,
  BASELINES,
  FROZEN_FORMATS,
  LAYER_COUNTS,
  PRESETS,
  PRETRAIN_SCHEMES,
  PROVIDERS,
  SCHEDULES,
  STARTS,
  SWEPT,
} from './choices.ts';
import type { Pretraining } from './pretrain/settings.ts';
import type { RewardWeights } from './run/scored-rollouts.ts';
import type { TrainOptions } from './run/settings.ts';
import type { LossWeights } from './step/pass.ts';
import type { Range } from './sweep/space.ts';

/** How a stage before the steps is done, whichever it is. */
interface GivenPretraining {
  readonly pretrainSteps: number;
  readonly pretrainLearningRate: number;
  readonly pretrainTokens: number;
  readonly pretrainChunks?: number;
  readonly memoryTokenSteps: number;
  readonly memoryTokenRate: number;
}

type Given = Omit<TrainOptions, 'encoderChoices' | 'weights' | 'layers' | 'pretrain'> &
  GivenPretraining & {
    readonly pretrain?: Pretraining['scheme'];
    readonly layers: (typeof LAYER_COUNTS)[number];
    readonly encoderPooling?: (typeof POOLINGS)[number];
    readonly encoderRecipe?: (typeof ENCODER_RECIPES)[number];
    readonly encoderModality?: (typeof ENCODER_MODALITIES)[number];
    readonly encoderMaxTokens?: number;
    readonly softPerChunk?: SoftPerChunk;
    readonly ce: number;
    readonly reinforce: number;
    readonly kl: number;
    readonly alignment: number;
    readonly distill: number;
    readonly json?: string;
    readonly preset?: string;
    /** The old name of `provider`. */
    readonly device?: TrainOptions['provider'];
  };

function number(accepts: (value: number) => boolean, words: string): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === '' || !Number.isFinite(value) || !accepts(value)) throw new InvalidArgumentError(words);
    return value;
  };
}
const weight = number((value) => value >= 0, 'It must be a number, 0 or more.');
const positive = number((value) => value > 0, 'It must be a number above 0.');
const wholeFrom0 = number((value) => Number.isInteger(value) && value >= 0, 'It must be a whole number, 0 or more.');
const share = number((value) => value >= 0 && value <= 1, 'It must be a number from 0 to 1.');

/** A size such as `8g` or `7.5g`, in bytes. */
function memory(text: string): number {
  const [, size, unit] = /^(\d+(?:\.\d+)?)([mg])$/i.exec(text) ?? [];
  const bytes = Number(size) * (unit?.toLowerCase() === 'm' ? 2 ** 20 : 2 ** 30);
  if (!(bytes > 0)) throw new InvalidArgumentError('It must be a size in GiB or MiB, such as 8g or 900m.');
  return bytes;
}

/** A sum such as `em+es` or `0.5*em+2*es`. */
function reward(text: string): RewardWeights {
  const weights = { em: 0, es: 0 };
  for (const term of text.split('+')) {
    const [, times, name] = /^\s*(?:(\d+(?:\.\d+)?)\s*\*\s*)?(em|es)\s*$/.exec(term) ?? [];
    if (name === undefined) throw new InvalidArgumentError('It must be a sum of em and es, such as em+es or 2*em+es.');
    weights[name as keyof typeof weights] += Number(times ?? 1);
  }
  if (weights.em + weights.es === 0) throw new InvalidArgumentError('A reward that is always 0 teaches nothing.');
  return weights;
}

const option = (flags: string, description: string, parse: (text: string) => number, initial: number) =>
  new Option(flags, description).argParser(parse).default(initial);

export function trainCommand(): Command {
  const command = new Command('train')
    .description('train a projector, or go on with a run; see docs/training.md')
    .requiredOption('--llm <path>', 'Hugging Face folder or .gguf file of the language model, which stays as it is')
    .option('--encoder <dir>', 'that of the encoder, which stays as it is; the language model where not given')
    .requiredOption(
      '--data <path>',
      'samples: a folder of llavacode dataset, or JSON lines in its form, gzipped or not',
    )
    .option('--validation <path>', 'samples to validate on, in the same form; of a folder its validation split')
    .option('--validation-samples <n>', 'the most of them that are judged, evenly spaced (default: all)', count)
    .requiredOption('--to <dir>', 'folder of the run; a run that lies there goes on')
    .option('--embeddings <dir>', 'folder of embeddings that several runs share; within --to where not given')
    .option('--from <path>', 'projector to begin with, as export takes it: a second stage; random where not given')
    .addOption(
      new Option('--start <how>', 'what a new projector begins with: random numbers, or the tokens of each chunk')
        .choices(STARTS)
        .conflicts('from'),
    );
  return withPretraining(withSteps(withWeights(command)))
    .addOption(
      new Option('--pretrain <scheme>', "a stage before the steps, of the paper's Appendix E").choices(
        PRETRAIN_SCHEMES,
      ),
    )
    .option('--pretrain-only', 'end after that stage; the same command without this goes on')
    .addOption(
      option('--patience <n>', 'validations without a better EM, then ES, that end it; 0: never', wholeFrom0, 10),
    )
    .option('--json <file>', 'write the last figures there')
    .action(async (_: unknown, command: Command) => {
      applyPreset(command);
      const { json, ...given } = command.opts<Given>();
      if (given.pretrain === undefined) refuseIdle(command, PRETRAINING, 'without --pretrain');
      if (given.pretrain === 'reconstruct') refuseIdle(command, /^memoryToken/, 'with --pretrain reconstruct');
      const options = optionsOf(given);
      const { weights, validation } = options;
      refuseUnused(command, [{ weights, judges: validation !== undefined }], (without) => `without ${without}`);
      const { runTrain } = await import('./run/terminal.ts');
      await runTrain(options, json);
    });
}

type GivenToSweep = Omit<
  Given,
  | keyof GivenPretraining
  | 'pretrain'
  | 'pretrainOnly'
  | 'until'
  | 'patience'
  | 'embeddings'
  | 'from'
  | 'start'
  | 'validation'
> & {
  readonly validation: string;
  readonly range?: readonly Range[];
  readonly logRange?: readonly Range[];
  readonly trials: number;
  readonly factor: number;
};

export function sweepCommand(): Command {
  const command = new Command('sweep')
    .description('search the learning rate and the weights of losses, or go on with a search; see docs/training.md')
    .requiredOption('--llm <path>', 'Hugging Face folder or .gguf file of the language model, which stays as it is')
    .option('--encoder <dir>', 'that of the encoder, which stays as it is; the language model where not given')
    .requiredOption('--data <path>', 'samples to train on, as llavacode train takes them')
    .requiredOption('--validation <path>', 'samples that trials are compared on, in the same form')
    .option('--validation-samples <n>', 'the most of them that are judged, evenly spaced (default: all)', count)
    .requiredOption('--to <dir>', 'folder of the sweep; one that lies there goes on')
    .addOption(option('--trials <n>', 'settings that are tried', count, 9))
    .addOption(option('--factor <n>', 'by which trials become fewer, and their steps more, in each round', factor, 3))
    .addOption(rangeOption('--range <name=low:high...>', 'range of a setting, each value as likely as another', false))
    .addOption(rangeOption('--log-range <name=low:high...>', 'the same, each factor as likely as another', true));
  return withSteps(withWeights(command))
    .option('--json <file>', 'write the figures there')
    .action(async (_: unknown, command: Command) => {
      applyPreset(command);
      const { json, range = [], logRange = [], trials, factor, ...given } = command.opts<GivenToSweep>();
      const ranges = rangesOf([...logRange, ...range], command);
      const { validation } = given;
      // Trials are not pretrained: these are never read.
      const pretraining = { pretrainSteps: 0, pretrainLearningRate: 0, pretrainTokens: 0 };
      const forTrials = { ...pretraining, memoryTokenSteps: 0, memoryTokenRate: 0, patience: 0 };
      const options = { ...optionsOf({ ...forTrials, ...given }), validation, ranges, trials, factor };
      const searched = Object.fromEntries(ranges.map(({ name, high }) => [name, high]));
      const users = [{ weights: { ...options.weights, ...searched }, judges: true }];
      refuseUnused(command, users, (without) => `without ${without}, or a range of it`);
      const { runSweep } = await import('./sweep/terminal.ts');
      await runSweep(options, trainWords(command), json);
    });
}

const factor = number((value) => Number.isInteger(value) && value >= 2, 'It must be a whole number, 2 or more.');

/** An option of several ranges such as `learning-rate=1e-5:1e-3`. */
const rangeOption = (flags: string, description: string, log: boolean) =>
  new Option(flags, `${description}: ${SWEPT.join(', ')}`).argParser(
    (text: string, before: readonly Range[] = []): readonly Range[] => {
      const [, found, low, high] = /^([a-z-]+)=([^:]+):([^:]+)$/.exec(text) ?? [];
      const name = SWEPT.find((one) => one === found);
      if (name === undefined) {
        throw new InvalidArgumentError(`It must be NAME=LOW:HIGH with a name of ${SWEPT.join(', ')}.`);
      }
      const range = { name, low: Number(low), high: Number(high), log };
      const least = log || name === 'learning-rate' ? Number.MIN_VALUE : 0;
      if (range.low >= least && range.high > range.low && Number.isFinite(range.high)) return [...before, range];
      throw new InvalidArgumentError(
        `LOW must be ${least === 0 ? '0 or more' : 'above 0'}, and HIGH above LOW, both finite.`,
      );
    },
  );

/** What the authors search, but for the divergence, which takes a second pass of the model. */
const AUTHORS_RANGES: readonly Range[] = [
  { name: 'learning-rate', low: 1e-5, high: 1e-3, log: true },
  { name: 'ce', low: 0, high: 1, log: false },
  { name: 'alignment', low: 0, high: 1, log: false },
  { name: 'reinforce', low: 0, high: 1, log: false },
];

/** The ranges of a sweep. Without any, those of the authors for the settings that nobody gave. */
function rangesOf(ranges: readonly Range[], command: Command): readonly Range[] {
  const isGiven = ({ name }: Range) =>
    command.getOptionValueSource(name === 'learning-rate' ? 'learningRate' : name) === 'cli';
  const found = ranges.length > 0 ? ranges : AUTHORS_RANGES.filter((range) => !isGiven(range));
  for (const [i, range] of found.entries()) {
    if (found.findIndex(({ name }) => name === range.name) < i) {
      command.error(`error: ${range.name} has two ranges: give one`);
    }
    if (isGiven(range)) command.error(`error: --${range.name} is given, and has a range: give one of them`);
  }
  if (found.length === 0) command.error('error: nothing is searched: give --range or --log-range');
  return found;
}

const SWEEP_ONLY = new Set(['--to', '--json', '--trials', '--factor', '--range', '--log-range']);

/** The words of `llavacode train` for what `sweep` was given: those that it takes as well, and a folder for the run. */
function trainWords(command: Command): string[] {
  const given = command.parent?.args.slice(1) ?? [];
  const words: string[] = [];
  let isKept = true;
  for (const word of given) {
    if (word.startsWith('--')) isKept = !SWEEP_ONLY.has(word.split('=')[0]!);
    if (isKept) words.push(word);
  }
  const { to } = command.opts<{ readonly to: string }>();
  const folder = to.replace(/\/+$/, '');
  return [...words, '--embeddings', `${folder}/embeddings`, '--to', `${folder}/best`];
}

type GivenToAblate = Omit<
  Given,
  | 'pretrain'
  | 'pretrainOnly'
  | 'encoder'
  | 'validation'
  | 'embeddings'
  | 'from'
  | 'start'
  | 'patience'
  | 'ce'
  | 'reinforce'
  | 'kl'
  | 'alignment'
  | 'distill'
> & {
  readonly encoder?: readonly string[];
  readonly validation: string;
};

export function ablateCommand(): Command {
  const command = new Command('ablate')
    .description("train and evaluate the rows of a table, or go on with it; the paper's figures stand beside ours")
    .argument(
      '<table>',
      'table1 (losses), table3 (encoders and layers), pretraining, or a file of rows; see docs/training.md',
    )
    .requiredOption('--llm <path>', 'Hugging Face folder or .gguf file of the language model, which stays as it is')
    .option('--encoder <dir...>', 'that of the encoder, or of several for table3; the language model where not given')
    .requiredOption('--data <path>', 'samples to train on, as llavacode train takes them')
    .requiredOption('--validation <path>', 'samples to evaluate on, in the same form')
    .requiredOption('--to <dir>', 'folder of the ablation; one that lies there goes on');
  return withPretraining(withSteps(command))
    .option('--json <file>', 'write the figures there')
    .action(async (table: string, _: unknown, command: Command) => {
      applyPreset(command);
      const { json, encoder = [], ...given } = command.opts<GivenToAblate>();
      const weights = { ce: 0.9, reinforce: 0.1, kl: 0, alignment: 0.1, distill: 0 };
      const forRows = { ...weights, encoder: undefined, patience: 0 };
      const { validation } = given;
      if (table === 'table1' || table === 'table3') refuseIdle(command, PRETRAINING, `in ${table}`);
      const options = { ...optionsOf({ ...forRows, ...given }), validation };
      const { rowsOf, runAblate } = await import('./ablate/terminal.ts');
      const rows = await rowsOf(table, options, encoder, schemesOf(given));
      const trained = rows.filter(({ arm }) => arm === 'compressed');
      const users = trained.map(({ changes }) => ({ weights: options.weights, judges: true, ...changes }));
      const reads = rows
        .filter(({ arm }) => arm === 'text')
        .map(() => ({ weights: {}, judges: true, readsText: true }));
      refuseUnused(command, [...users, ...reads], (without) => `in ${table}: no row has ${without}`);
      for (const name of ['layers', 'learningRate', 'alignmentForm'] as const) {
        if (trained.length > 0 && trained.every(({ changes }) => changes[name] !== undefined)) {
          refuseIdle(command, new RegExp(`^${name}$`), `in ${table}: all rows that are trained set it themselves`);
        }
      }
      await runAblate(rows, { ...options, encoder: encoder[0] }, json);
    });
}

/** The weights of the losses. */
const withWeights = (command: Command) =>
  command
    .addOption(option('--ce <weight>', 'weight of cross-entropy', weight, 0.9))
    .addOption(option('--alignment <weight>', 'weight of the alignment of cosines', weight, 0.1))
    .addOption(option('--reinforce <weight>', 'weight of REINFORCE: rollouts are rewarded as --reward says', weight, 0))
    .addOption(
      option('--kl <weight>', 'weight of the divergence from the model that reads the chunks as text', weight, 0),
    )
    .addOption(
      option('--distill <weight>', 'weight of the cross-entropy of what that model writes by itself', weight, 0),
    );

/** The options that decide how a run steps. */
function withSteps(command: Command): Command {
  command
    .addOption(
      new Option(
        '--preset <name>',
        "settings of the paper's runs; options that are given as well go before them",
      ).choices(Object.keys(PRESETS)),
    )
    .addOption(option('--steps <n>', 'steps of the optimiser', count, 1000))
    .addOption(
      new Option('--epochs <n>', 'how often all samples are seen, in place of --steps')
        .argParser(positive)
        .conflicts('steps'),
    )
    .addOption(option('--batch <n>', 'samples of one step', count, 64))
    .addOption(new Option('--layers <n>', 'linear layers of the projector').choices(LAYER_COUNTS).default('3'))
    .addOption(option('--chunks <n>', 'the most chunks of a prompt, each with its soft tokens', count, 10))
    .addOption(
      new Option('--alignment-form <form>', "the paper's formula, or the mean of squares of the authors' code")
        .choices(ALIGNMENT_FORMS)
        .default('frobenius'),
    )
    .addOption(
      new Option('--reward <sum>', 'what a rollout is worth, such as 2*em+es: exact match, edit similarity')
        .argParser(reward)
        .default({ em: 1, es: 1 }, 'em+es'),
    )
    .addOption(
      new Option('--baseline <b>', 'none: greedy rollouts; scst: drawn ones, less what the greedy one is worth')
        .choices(BASELINES)
        .default('none'),
    )
    .addOption(option('--learning-rate <x>', 'the largest learning rate', positive, 1e-3))
    .addOption(new Option('--schedule <s>', 'how it falls after the warm-up').choices(SCHEDULES).default('cosine'))
    .addOption(option('--warmup <share>', 'share of the steps in which it rises from 0', share, 0.03))
    .addOption(option('--clip-norm <x>', 'largest norm of a gradient; larger ones are scaled down', positive, 1))
    .addOption(option('--weight-decay <x>', 'decay of matrices; biases and norms have none', weight, 0))
    .addOption(option('--prompt-tokens <n>', 'the most tokens of a prompt, soft tokens included', count, 512))
    .addOption(option('--target-tokens <n>', 'the most tokens of a target', count, 64))
    .addOption(option('--rollout-tokens <n>', 'the most tokens of a rollout', count, 50))
    .addOption(option('--text-tokens <n>', 'the most tokens of the chunks as text', count, 512))
    .addOption(
      new Option('--frozen <format>', "the language model's weights: w8a8 computes in 8 bits, others in 32-bit floats")
        .choices(FROZEN_FORMATS)
        .default('fp32'),
    )
    .option('--recompute', 'compute activations again instead of keeping them: less memory, a third more time', false)
    .addOption(
      new Option(
        '--memory <size>',
        'what the run may take, such as 8g: decides --recompute and rollouts at a time',
      ).argParser(memory),
    );
  return withEncoder(command)
    .addOption(option('--seed <n>', 'the same seed, data and threads give the same bits', count, 1))
    .addOption(option('--threads <n>', 'threads of the engine, of all workers together', count, availableParallelism()))
    .option('--workers <n>', 'processes that make passes through the language model; 1 where not given', count)
    .addOption(
      new Option(
        '--provider <name>',
        'device to train on: auto takes a GPU if the system lists one; cpu where not given',
      ).choices(PROVIDERS),
    )
    .addOption(
      new Option('--device <name>', 'the old name of --provider').choices(PROVIDERS).conflicts('provider').hideHelp(),
    )
    .addOption(option('--every <n>', 'steps between two checkpoints and validations', count, 50));
}

/** The options that decide how a stage before the steps is done. */
const withPretraining = (command: Command) =>
  command
    .addOption(option('--pretrain-steps <n>', 'steps of the optimiser in pretraining', count, 500))
    .addOption(option('--pretrain-learning-rate <x>', 'the largest learning rate of these steps', positive, 1e-3))
    .addOption(option('--pretrain-tokens <n>', 'the most tokens of a chunk that are recovered', count, 128))
    .option('--pretrain-chunks <n>', 'the most distinct chunks that are recovered (default: all)', count)
    .addOption(option('--memory-token-steps <n>', 'the most steps that fit the memory token of a chunk', count, 200))
    .addOption(option('--memory-token-rate <x>', 'learning rate of these steps', positive, 0.01));

const PRETRAINING = /^(pretrain|memoryToken)./;

/** @throws CommanderError where an option with such a name is given, which has no effect then. */
function refuseIdle(command: Command, names: RegExp, inCase: string): void {
  for (const one of command.options) {
    const name = one.attributeName();
    if (!names.test(name) || command.getOptionValueSource(name) !== 'cli') continue;
    command.error(`error: option '${one.long}' has no effect ${inCase}`);
  }
}

/** What is trained or judged, and may use an option. */
interface User {
  readonly weights: Partial<LossWeights>;
  /** Whether samples are completed, to compare them with their targets. */
  readonly judges: boolean;
  /** Whether its prompts have the chunks as text; those of a teacher, and of distillation, have them anyway. */
  readonly readsText?: boolean;
}

/** Options, who uses them, and what must be given so that somebody does. */
const USES: readonly (readonly [options: RegExp, isUsed: (user: User) => boolean, without: string])[] = [
  [/^(reward|baseline)$/, ({ weights }) => !!weights.reinforce, '--reinforce'],
  [/^alignmentForm$/, ({ weights }) => !!weights.alignment, '--alignment'],
  [/^textTokens$/, ({ weights, readsText }) => !!(weights.kl || weights.distill || readsText), '--kl or --distill'],
  [
    /^rolloutTokens$/,
    ({ weights, judges }) => !!(weights.reinforce || weights.distill) || judges,
    '--reinforce, --distill or --validation',
  ],
  [/^(patience|validationSamples)$/, ({ judges }) => judges, '--validation'],
];

/**
 * @param inCase when an option has no effect, in words, given what it would take
 * @throws CommanderError where an option is given that nobody uses.
 */
function refuseUnused(command: Command, users: readonly User[], inCase: (without: string) => string): void {
  for (const [options, isUsed, without] of USES) {
    if (!users.some(isUsed)) refuseIdle(command, options, inCase(without));
  }
}

function schemesOf(given: GivenPretraining): Readonly<Record<Pretraining['scheme'], Pretraining>> {
  const { pretrainSteps, pretrainLearningRate, pretrainTokens, pretrainChunks } = given;
  const common = {
    steps: pretrainSteps,
    learningRate: pretrainLearningRate,
    tokens: pretrainTokens,
    chunks: pretrainChunks,
  };
  const memory = { steps: given.memoryTokenSteps, learningRate: given.memoryTokenRate };
  return { reconstruct: { scheme: 'reconstruct', ...common }, memory: { scheme: 'memory', ...common, memory } };
}

const withEncoder = (command: Command) =>
  command
    .addOption(new Option('--encoder-pooling <pooling>', 'how the encoder pools tokens').choices(POOLINGS))
    .addOption(new Option('--encoder-recipe <recipe>', 'how a language model encodes').choices(ENCODER_RECIPES))
    .addOption(new Option('--encoder-modality <m>', 'what UniXcoder reads of a chunk').choices(ENCODER_MODALITIES))
    .option('--encoder-max-tokens <n>', 'tokens of a chunk that the encoder sees', count)
    .option(
      '--soft-per-chunk <k>',
      `soft tokens of one chunk, ${SOFT_PER_CHUNK.join(', ')}; 1 where not given`,
      countAmong(SOFT_PER_CHUNK),
    );

/** Sets the options of the preset that nobody gave. Steps that were given go before its epochs. */
function applyPreset(command: Command): void {
  const { preset } = command.opts<{ readonly preset?: keyof typeof PRESETS }>();
  if (preset === undefined) return;
  const isGiven = (name: string) => command.getOptionValueSource(name) === 'cli';
  for (const [name, value] of Object.entries(PRESETS[preset])) {
    if (isGiven(name) || (name === 'epochs' && isGiven('steps'))) continue;
    command.setOptionValueWithSource(name, value, 'preset');
  }
}

function optionsOf(given: Omit<Given, 'json'>): TrainOptions {
  const { encoderPooling, encoderRecipe, encoderModality, encoderMaxTokens, softPerChunk, layers, ...rest } = given;
  const { ce, reinforce, kl, alignment, distill, preset: _preset, pretrain, device, ...others } = rest;
  const { pretrainSteps, pretrainLearningRate, pretrainTokens, pretrainChunks, ...more } = others;
  const { memoryTokenSteps, memoryTokenRate, ...options } = more;
  return {
    ...options,
    provider: options.provider ?? device,
    layers: Number(layers) as TrainOptions['layers'],
    weights: { ce, reinforce, kl, alignment, distill: distill || undefined },
    pretrain: pretrain && schemesOf(given)[pretrain],
    encoderChoices: {
      pooling: encoderPooling,
      recipe: encoderRecipe,
      modality: encoderModality,
      maxTokens: encoderMaxTokens,
      softPerChunk,
    },
  };
}
