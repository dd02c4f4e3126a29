/** The command `llavacode bench all`. */
import { join } from 'node:path';
import { flag, option, optional, type ParsedOptions, positive, SYSTEM_OPTIONS, text } from '../options.ts';

export const README = join('bench', 'README.md');
export const readmeOption = option(
  '<file>',
  'overview whose generated part is replaced; pages lie beside it',
  text,
  README,
);

/** Options that only `bench all` has: its runs do not repeat them. */
export const ALL_ONLY_OPTIONS = {
  minutes: option('<n>', 'approximate budget of all runs, without making bundles', positive, 40),
  quick: flag('do as little as shows that everything runs, as with --minutes 1'),
  slo: optional('<bounds>', 'objective, as of bench load', text),
  redis: optional('<url>', 'a Redis to measure as well, as of bench retrieval', text),
  readme: readmeOption,
};

export const ALL_COMMAND = {
  name: 'all',
  description: 'every bench of the whole system once, within a time budget; then the pages are made anew',
  options: { ...ALL_ONLY_OPTIONS, ...SYSTEM_OPTIONS },
};
export type AllOptions = ParsedOptions<typeof ALL_COMMAND>;
