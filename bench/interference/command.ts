/** The command `llavacode bench interference`. */
import { option, optional, type ParsedOptions, positive, SYSTEM_OPTIONS, whole } from '../options.ts';

export const INTERFERENCE_COMMAND = {
  name: 'interference',
  description: 'running streams while long prompts arrive, in both modes',
  options: {
    streams: option('<n>', 'streams that run', whole, 4),
    promptTokens: option('<n>', 'tokens of each prompt that arrives', whole, 2000),
    everyMs: optional('<n>', 'time between two prompts in ms; if not given, 1.5 times what one takes', positive),
    windowSeconds: optional(
      '<n>',
      'length of the quiet and of the busy window in s; if not given, 20 s or the time for 8 prompts',
      positive,
    ),
    ...SYSTEM_OPTIONS,
  },
};
export type InterferenceOptions = ParsedOptions<typeof INTERFERENCE_COMMAND>;
