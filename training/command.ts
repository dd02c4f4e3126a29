/** The options of `llavacode train`. The code that trains is loaded when the command runs, and not for `--help`. */
import { availableParallelism } from 'node:os';
import { Command, InvalidArgumentError, Option } from 'commander';
import { ENCODER_MODALITIES, ENCODER_RECIPES, POOLINGS } from '../services/lib/model/bundle/choices.ts';
import { count } from '../services/lib/process/count-argument.ts';
import { ALIGNMENT_FORMS, FROZEN_FORMATS, LAYER_COUNTS, SCHEDULES } from './choices.ts';
import type { TrainOptions } from './run/settings.ts';

type Given = Omit<TrainOptions, 'encoderChoices' | 'weights' | 'layers'> & {
  readonly layers: (typeof LAYER_COUNTS)[number];
  readonly encoderPooling?: (typeof POOLINGS)[number];
  readonly encoderRecipe?: (typeof ENCODER_RECIPES)[number];
  readonly encoderModality?: (typeof ENCODER_MODALITIES)[number];
  readonly encoderMaxTokens?: number;
  readonly ce: number;
  readonly reinforce: number;
  readonly kl: number;
  readonly alignment: number;
  readonly json?: string;
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
const share = number((value) => value >= 0 && value <= 1, 'It must be a number from 0 to 1.');

const option = (flags: string, description: string, parse: (text: string) => number, initial: number) =>
  new Option(flags, description).argParser(parse).default(initial);

export function trainCommand(): Command {
  const command = new Command('train')
    .description('train a projector, or go on with a run; see docs/training.md')
    .requiredOption('--llm <dir>', 'Hugging Face folder of the language model, which stays as it is')
    .option('--encoder <dir>', 'that of the encoder, which stays as it is; the language model where not given')
    .requiredOption(
      '--data <path>',
      'samples: a folder of llavacode dataset, or JSON lines in its form, gzipped or not',
    )
    .option('--validation <path>', 'samples to validate on, in the same form; of a folder its validation split')
    .requiredOption('--to <dir>', 'folder of the run; a run that lies there goes on')
    .addOption(option('--steps <n>', 'steps of the optimiser', count, 1000))
    .addOption(option('--batch <n>', 'samples of one step', count, 64))
    .addOption(new Option('--layers <n>', 'linear layers of the projector').choices(LAYER_COUNTS).default('3'))
    .addOption(option('--chunks <n>', 'the most soft tokens of a prompt, one for each chunk', count, 10))
    .addOption(option('--ce <weight>', 'weight of cross-entropy', weight, 0.9))
    .addOption(option('--alignment <weight>', 'weight of the alignment of cosines', weight, 0.1))
    .addOption(
      option('--reinforce <weight>', 'weight of REINFORCE with greedy rollouts, rewarded by EM + ES', weight, 0),
    )
    .addOption(
      option('--kl <weight>', 'weight of the divergence from the model that reads the chunks as text', weight, 0),
    )
    .addOption(
      new Option('--alignment-form <form>', "the paper's formula, or the mean of squares of the authors' code")
        .choices(ALIGNMENT_FORMS)
        .default('frobenius'),
    )
    .addOption(option('--learning-rate <x>', 'the largest learning rate', positive, 1e-3))
    .addOption(new Option('--schedule <s>', 'how it falls after the warm-up').choices(SCHEDULES).default('cosine'))
    .addOption(option('--warmup <share>', 'share of the steps in which it rises from 0', share, 0.03))
    .addOption(option('--clip-norm <x>', 'largest norm of a gradient; larger ones are scaled down', positive, 1))
    .addOption(option('--weight-decay <x>', 'decay of matrices; biases and norms have none', weight, 0))
    .addOption(option('--prompt-tokens <n>', 'the most tokens of a prompt, soft tokens included', count, 512))
    .addOption(option('--target-tokens <n>', 'the most tokens of a target', count, 64))
    .addOption(option('--rollout-tokens <n>', 'the most tokens of a rollout', count, 50))
    .addOption(option('--text-tokens <n>', 'the most tokens of the chunks as text, for --kl', count, 512))
    .addOption(
      new Option('--frozen <format>', 'the language model in 32-bit floats, or 8 bits forward and backward')
        .choices(FROZEN_FORMATS)
        .default('fp32'),
    )
    .option('--recompute', 'compute activations again instead of keeping them: less memory, a third more time', false);
  return withEncoder(command)
    .addOption(option('--seed <n>', 'the same seed, data and threads give the same bits', count, 1))
    .addOption(option('--threads <n>', 'threads of the engine', count, availableParallelism()))
    .addOption(option('--every <n>', 'steps between two checkpoints and validations', count, 50))
    .option('--json <file>', 'write the last figures there')
    .action(run);
}

const withEncoder = (command: Command) =>
  command
    .addOption(new Option('--encoder-pooling <pooling>', 'how the encoder pools tokens').choices(POOLINGS))
    .addOption(new Option('--encoder-recipe <recipe>', 'how a language model encodes').choices(ENCODER_RECIPES))
    .addOption(new Option('--encoder-modality <m>', 'what UniXcoder reads of a chunk').choices(ENCODER_MODALITIES))
    .option('--encoder-max-tokens <n>', 'tokens of a chunk that the encoder sees', count);

async function run(given: Given): Promise<void> {
  const { runTrain } = await import('./run/terminal.ts');
  const { encoderPooling, encoderRecipe, encoderModality, encoderMaxTokens, json, layers, ...rest } = given;
  const { ce, reinforce, kl, alignment, ...options } = rest;
  await runTrain(
    {
      ...options,
      layers: Number(layers) as TrainOptions['layers'],
      weights: { ce, reinforce, kl, alignment },
      encoderChoices: {
        pooling: encoderPooling,
        recipe: encoderRecipe,
        modality: encoderModality,
        maxTokens: encoderMaxTokens,
      },
    },
    json,
  );
}
