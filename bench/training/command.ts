/** The command `llavacode bench training`. */
import { availableParallelism } from 'node:os';
import { SHAPES } from '../../services/lib/model/checkpoint/synth.ts';
import { count } from '../../services/lib/process/count-argument.ts';
import { FROZEN_FORMATS } from '../../training/choices.ts';
import { counts, flag, option, optional, type ParsedOptions, positive, text, words } from '../options.ts';

/** The model that ships, with its own weights; the others are random ones of published shapes. */
export const SHIPPED = 'tiny-coder';
/** What passes are trained by: cross-entropy of the target, REINFORCE on a rollout, or both in one pass. */
const LOSSES = ['ce', 'reinforce', 'joint'] as const;
const KNOWN = [SHIPPED, ...(Object.keys(SHAPES) as (keyof typeof SHAPES)[])] as const;

export const TRAINING_COMMAND = {
  name: 'training',
  description: 'samples per second and peak memory of the training of a projector',
  options: {
    shape: option('<list>', `shapes of the frozen language model: ${KNOWN.join(', ')}`, words(KNOWN), [
      SHIPPED,
      'qwen2.5-coder-0.5b',
      'qwen2.5-coder-1.5b',
    ]),
    frozen: option('<list>', 'formats of its weights', words(FROZEN_FORMATS), [...FROZEN_FORMATS]),
    prompt: option('<list>', 'tokens of the prompts, soft tokens included', counts, [510, 2000]),
    target: option('<n>', 'tokens of the targets', count, 40),
    losses: option('<list>', 'what passes are trained by; joint: the other two in one pass', words(LOSSES), ['ce']),
    rollout: option('<n>', 'tokens of the rollouts of reinforce and joint', count, 50),
    soft: option('<n>', 'soft tokens of a prompt', count, 10),
    recompute: flag('compute activations again instead of keeping them'),
    repeats: option('<n>', 'passes of every row, after one that does not count', count, 5),
    minutes: option('<n>', 'time after which no other row begins, and a row has its last pass', positive, 60),
    pytorch: optional('<python>', 'measure PyTorch beside it: a Python that has torch and transformers', text),
    threads: option('<n>', 'threads of the engine', count, availableParallelism()),
    seed: option('<n>', 'seed of the weights and the samples', count, 1),
  },
};
export type TrainingBenchOptions = ParsedOptions<typeof TRAINING_COMMAND>;
