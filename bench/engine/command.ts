/** The commands `llavacode bench engine` and `llavacode bench handoff`. */
import { availableParallelism } from 'node:os';
import { count } from '../../services/lib/process/count-argument.ts';
import { BUNDLE_OPTIONS, counts, flag, option, optional, type ParsedOptions, required, text } from '../options.ts';

export const ENGINE_COMMAND = {
  name: 'engine',
  description: 'the bare engine, without HTTP and RPC',
  options: {
    model: required('<model>', 'a bundle, a checkpoint, or the name of a published shape', text),
    ...BUNDLE_OPTIONS,
    prompt: option('<tokens>', 'lengths of prompts', counts, [500, 2000]),
    chunk: option('<tokens>', 'sizes of prompt chunks', counts, [512]),
    batch: option('<n>', 'sequences of a decode step', counts, [1, 2, 4, 8]),
    context: option('<tokens>', 'tokens that each of these sequences holds', counts, [500]),
    repeats: option('<n>', 'measurements of every cell', count, 7),
    threads: option('<n>', 'threads of the engine', count, availableParallelism()),
    spin: flag('let idle threads spin'),
    prepacked: option(
      '<dir>',
      "folder of prepacked weights; empty means within the bundle, 'off' means none",
      text,
      '',
    ),
    verifyRuns: flag('then open verify runs too, and measure their time and memory'),
    seed: option('<n>', 'seed of the order of cells', count, 1),
    against: optional(
      '<dir>',
      'another checkout of this project, built: measure CPU time of this engine and its, in --repeats pairs',
      text,
    ),
  },
};
export type EngineBenchOptions = ParsedOptions<typeof ENGINE_COMMAND>;

export const HANDOFF_COMMAND = {
  name: 'handoff',
  description: 'a KV cache from one process to another over gRPC on loopback, without a model or a scheduler',
  options: {
    layers: option('<n>', 'layers of the cache; the defaults are the shape of qwen2.5-coder-0.5b', count, 24),
    kvHeads: option('<n>', 'KV heads of a layer', count, 2),
    headDim: option('<n>', 'values of one head', count, 64),
    positions: option('<n>', 'tokens that the cache holds', count, 2010),
    repeats: option('<n>', 'transfers in every wire type', count, 21),
  },
};
export type HandoffOptions = ParsedOptions<typeof HANDOFF_COMMAND>;
