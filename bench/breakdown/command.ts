/** The command `llavacode bench breakdown`. */
import { option, type ParsedOptions, SYSTEM_OPTIONS, whole } from '../options.ts';

export const BREAKDOWN_COMMAND = {
  name: 'breakdown',
  description: 'where the time of a request goes',
  options: {
    codeTokens: option('<n>', 'tokens of the prompt without its context', whole, 2000),
    outputTokens: option('<n>', 'tokens of every answer', whole, 16),
    requests: option('<n>', 'requests per mode and context', whole, 8),
    ...SYSTEM_OPTIONS,
  },
};
export type BreakdownOptions = ParsedOptions<typeof BREAKDOWN_COMMAND>;
