/** The command `llavacode bench speculation`. */
import { count } from '../../services/lib/process/count-argument.ts';
import { oneOf, option, type ParsedOptions, positive, SYSTEM_OPTIONS, whole, words } from '../options.ts';

/** What the client says of the output; see measure.ts. */
export const TRACES = ['completion', 'edit', 'exact', 'wrong'] as const;
export type TraceName = (typeof TRACES)[number];

export const SPECULATION_COMMAND = {
  name: 'speculation',
  description: 'tokens per second with and without speculation, in turns, and whether the tokens are the same',
  options: {
    traces: option('<list>', `what is sent: ${TRACES.join(', ')}`, words(TRACES), [...TRACES]),
    pairs: option('<n>', 'requests of each trace to either system, after one that is not counted', count, 20),
    promptTokens: option('<n>', 'tokens of a prompt', whole, 500),
    outputTokens: option('<n>', 'tokens of an output', count, 128),
    temperatures: option('<list>', 'temperatures, in turns; 0 is greedy', temperatures, [0, 0.8]),
    context: oneOf(
      '<mode>',
      'context of prompts: ten chunks as soft tokens, or off',
      ['compressed', 'off'],
      'compressed',
    ),
    identity: option(
      '<n>',
      'in place of the traces, compare the answers to so many requests of all kinds; 0: measure the traces',
      whole,
      0,
    ),
    streams: option('<n>', 'requests of --identity in flight at once', count, 2),
    mode: oneOf('<mode>', 'the deployment', ['colocated', 'disaggregated'], 'disaggregated'),
    ...SYSTEM_OPTIONS,
  },
};
export type SpeculationOptions = ParsedOptions<typeof SPECULATION_COMMAND>;

function temperatures(text: string): number[] {
  return text.split(',').map((item) => (item.trim() === '0' ? 0 : positive(item)));
}
