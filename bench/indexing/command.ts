/** The command `llavacode bench index`. */
import { type ParsedOptions, SYSTEM_OPTIONS } from '../options.ts';

export const INDEX_COMMAND = {
  name: 'index',
  description: 'how fast a repository is encoded',
  options: SYSTEM_OPTIONS,
};
export type IndexBenchOptions = ParsedOptions<typeof INDEX_COMMAND>;
