/** The command `llavacode bench tables`. */
import { option, type ParsedOptions, positive, SYSTEM_OPTIONS, whole } from '../options.ts';

export const TABLES_COMMAND = {
  name: 'tables',
  description: "the paper's Tables 4, 8, 9, 10 and 11",
  options: {
    rounds: option('<n>', 'upper bound on the rounds', whole, 6),
    minutes: option('<n>', 'budget: no further round begins that would end later', positive, 20),
    ...SYSTEM_OPTIONS,
  },
};
export type TablesOptions = ParsedOptions<typeof TABLES_COMMAND>;
