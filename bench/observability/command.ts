/** The command `llavacode bench observability`. */
import { option, type ParsedOptions, SYSTEM_OPTIONS, whole } from '../options.ts';

export const OBSERVABILITY_COMMAND = {
  name: 'observability',
  description: 'what traces and scrapes cost of TTFT, on and off in turns; and one trace with a lost worker',
  options: {
    promptTokens: option('<n>', 'tokens of the whole prompt', whole, 500),
    outputTokens: option('<n>', 'tokens of every answer', whole, 16),
    pairs: option('<n>', 'pairs of requests, one with traces and one without', whole, 100),
    ...SYSTEM_OPTIONS,
  },
};
export type ObservabilityOptions = ParsedOptions<typeof OBSERVABILITY_COMMAND>;
