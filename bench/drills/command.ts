/** The commands `llavacode bench drills` and `llavacode bench soak`. */
import { count } from '../../services/lib/process/count-argument.ts';
import { DRILL_OPTIONS, flag, list, option, optional, type ParsedOptions, positive, text } from '../options.ts';

export const DRILLS_COMMAND = {
  name: 'drills',
  description:
    'kill, stop, cut off and starve parts of a running system, and compare its answers with undisturbed ones',
  options: {
    count: option('<n>', 'disturbances of one kind', count, 2),
    seconds: option('<n>', 'duration of a lasting disturbance in s', positive, 4),
    only: option('<words>', 'run only the drills whose name contains one of these words', list, [], 'all drills'),
    redis: optional('<url>', 'store to use instead of LMDB; the bench writes to it', text),
    ...DRILL_OPTIONS,
  },
};
export type DrillsOptions = ParsedOptions<typeof DRILLS_COMMAND>;

export const SOAK_COMMAND = {
  name: 'soak',
  description: 'mixed load beside hostile tenants, with restarts and kills: does anything grow, fail, or wait longer?',
  options: {
    minutes: option('<n>', 'duration in minutes', positive, 3),
    restartEvery: option('<seconds>', 'mean time between restarts or kills of a worker in s', positive, 20),
    honestOnly: flag('send honest traffic alone, without hostile tenants beside it'),
    hostileTokens: option('<n>', 'tokens a minute that each of the two hostile tenants may use', count, 6_000),
    ...DRILL_OPTIONS,
    rate: optional('<n>', 'honest requests per second; a fair share of what is measured when not given', positive),
  },
};
export type SoakOptions = ParsedOptions<typeof SOAK_COMMAND>;
