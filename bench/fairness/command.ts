/** The command `llavacode bench fairness`. */
import { count } from '../../services/lib/process/count-argument.ts';
import { counts, list, option, type ParsedOptions, positive, SYSTEM_OPTIONS, whole } from '../options.ts';

export const FAIRNESS_COMMAND = {
  name: 'fairness',
  description: 'shares of tenants, and the waits of honest ones, beside clients that want everything',
  options: {
    seconds: option('<n>', 'length of the window in which each mix is measured, in s', positive, 10),
    warmup: option('<n>', 'time before each window in which the same mix runs, in s', positive, 4),
    weights: option('<list>', 'weights of the first busy tenant, one run of all mixes each', counts, [1, 3]),
    busy: option('<n>', 'requests that each busy tenant keeps waiting or running', count, 16),
    only: option('<words>', 'run only the mixes whose name contains one of these words', list, [], 'all mixes'),
    ...SYSTEM_OPTIONS,
    capacity: option('<n>', 'tokens that one slot holds, prompt and output together', whole, 1024),
    timeoutMs: option('<n>', 'time after which a request counts as failed, in ms', whole, 30_000),
  },
};
export type FairnessOptions = ParsedOptions<typeof FAIRNESS_COMMAND>;
