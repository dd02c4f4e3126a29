/** The command `llavacode bench load`. */
import { InvalidArgumentError } from 'commander';
import { ARRIVALS } from '../measure/arrivals.ts';
import { parseSlo } from '../measure/latency.ts';
import {
  list,
  numbers,
  type OptionsOf,
  oneOf,
  option,
  optional,
  type ParsedOptions,
  positive,
  SYSTEM_OPTIONS,
  type SystemBenchOptions,
  share,
  text,
  whole,
} from '../options.ts';
import { CONTEXTS } from '../system/context.ts';
import { PINNINGS } from '../system/cores.ts';
import type { Deployment } from '../system/deployment.ts';

/** Reads splits like `1:1,2:1`: numbers of prefill and decode workers. */
const splits = (text: string): Deployment[] =>
  list(text).map((item) => {
    const [prefill, decode] = item.split(':').map(whole);
    if (!prefill || !decode) throw new InvalidArgumentError(`${item} must be like 2:1 (prefill:decode workers).`);
    return { mode: 'disaggregated', prefill, decode };
  });

/** Options that say what the requests of a load are like. */
export const WORKLOAD_OPTIONS = {
  arrivals: oneOf('<kind>', 'distribution of the gaps between requests', ARRIVALS, 'poisson'),
  burstiness: option('<shape>', 'shape of gamma arrivals: 1 is Poisson, below 1 bursty, above 1 even', positive, 1),
  requests: option('<n>', 'requests of one run, including the warm-up', whole, 40),
  seconds: optional('<n>', 'duration of one run in s, instead of --requests', positive),
  warmup: option('<n>', 'first requests of a run that do not count', whole, 4),
  promptTokens: option('<n>', 'tokens of the whole prompt, including its context', whole, 500),
  outputTokens: option('<n>', 'tokens of every answer', whole, 24),
  context: oneOf('<mode>', 'how the prompt holds its context', CONTEXTS, 'compressed'),
  cancelRate: option('<share>', 'share of requests whose client hangs up', share, 0),
  cancelWithinMs: option('<n>', 'time in which it hangs up, at a random moment, in ms', whole, 1000),
};
export type Workload = OptionsOf<typeof WORKLOAD_OPTIONS> & Pick<SystemBenchOptions, 'timeoutMs' | 'seed'>;

export const LOAD_COMMAND = {
  name: 'load',
  description: 'open-loop load on both modes: one rate, several rates, a trace, or a sweep',
  options: {
    slo: optional(
      '<bounds>',
      'objective, like ttft:500,tpot:50; three times the unloaded figures if not given',
      parseSlo,
    ),
    rate: option('<list>', 'requests per second', numbers, [], 'a sweep for the highest rate'),
    probes: option('<n>', 'rates that a sweep tries', whole, 6),
    targetTtftMs: optional('<n>', 'TTFT above which requests are refused, in ms; none is if not given', positive),
    trace: optional('<file>', "trace of requests in Mooncake's format, JSON lines, instead of a rate", text),
    splits: option(
      '<list>',
      'prefill:decode workers to compare with one colocated worker',
      splits,
      splits('1:1'),
      '1:1',
    ),
    pinning: oneOf('<kind>', 'shared cores for all workers, or cores of its own for each', PINNINGS, 'split'),
    ...WORKLOAD_OPTIONS,
    ...SYSTEM_OPTIONS,
  },
};
export type LoadOptions = ParsedOptions<typeof LOAD_COMMAND>;
