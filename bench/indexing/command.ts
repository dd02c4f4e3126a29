/** The command `llavacode bench index`. */
import { ENCODERS, type EncoderShape } from '../../services/lib/model/checkpoint/synth.ts';
import { count } from '../../services/lib/process/count-argument.ts';
import { oneOf, option, type ParsedOptions, SYSTEM_OPTIONS } from '../options.ts';

export const INDEX_COMMAND = {
  name: 'index',
  description: 'how fast a repository is encoded, and how many hours 100,000 chunks take',
  options: {
    ...SYSTEM_OPTIONS,
    encoder: oneOf(
      '<shape>',
      'encoder of bundles that are made from a published shape',
      Object.keys(ENCODERS) as EncoderShape[],
      'qwen3-embedding-0.6b',
    ),
    chunks: option('<n>', 'chunks of the repository that every measurement encodes', count, 24),
    rounds: option('<n>', 'measurements of every row', count, 3),
  },
};
export type IndexBenchOptions = ParsedOptions<typeof INDEX_COMMAND>;
