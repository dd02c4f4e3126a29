/** The command `llavacode bench gpu`: what it measures on a device, what it packs, and what it computes without one. */
import { PRECISIONS } from '../../services/lib/model/bundle/choices.ts';
import { count } from '../../services/lib/process/count-argument.ts';
import { counts, flag, list, option, optional, type ParsedOptions, positive, text, words } from '../options.ts';

/**
 * The parts of the bench, in the order in which they run. The tables are the last, because only they start whole
 * systems, which take a while to stop when their time is over.
 */
export const PART_NAMES = ['device', 'correct', 'speed', 'handoff', 'memory', 'two-workers', 'tables'] as const;
export type PartName = (typeof PART_NAMES)[number];

/** The name that stands for the model that ships. */
export const TINY = 'tiny';

export const GPU_COMMAND = {
  name: 'gpu',
  description: 'one device: is it right, how fast is it, and what holds it back; needs no network',
  options: {
    provider: option('<p>', 'device to measure, as --provider of a worker takes it', text, 'webgpu'),
    model: option('<list>', `published shapes, bundles or checkpoints; ${TINY} is the model that ships`, list, [
      'qwen2.5-coder-1.5b',
      'qwen2.5-coder-7b',
    ]),
    precision: option('<list>', 'precisions of the bundles that are made', words(PRECISIONS), ['int4-fp16', 'fp16']),
    prompt: option('<tokens>', 'lengths of prompts', counts, [128, 512, 2010]),
    rows: option('<n>', 'sequences of a decode step', counts, [1, 4, 16, 32]),
    context: option('<tokens>', 'tokens that each of these sequences holds', count, 512),
    minutes: option('<n>', 'budget of all parts together', positive, 8),
    parts: option('<list>', 'parts to run', words(PART_NAMES), [...PART_NAMES]),
    pack: optional(
      '<path>',
      'measure nothing; write a folder (or PATH.tar) that runs on a machine without network',
      text,
    ),
    fits: flag('measure nothing; print what fits in the memory of a card'),
  },
};
export type GpuOptions = ParsedOptions<typeof GPU_COMMAND>;
