/** The command `llavacode plan`. */
import { parseSlo } from '../measure/latency.ts';
import { numbers, option, optional, type ParsedOptions, required, SYSTEM_OPTIONS, text, whole } from '../options.ts';

export const PLAN_COMMAND = {
  name: 'plan',
  description: 'how many prefill and decode workers a load needs, from rates measured on this machine',
  options: {
    rate: required('<list>', 'requests per second', numbers),
    promptTokens: option('<n>', 'tokens of the whole prompt', whole, 500),
    outputTokens: option('<n>', 'tokens of every answer', whole, 24),
    slo: optional(
      '<bounds>',
      'objective, like ttft:500,tpot:50; if not given, that of --load, or three times the unloaded figures',
      parseSlo,
    ),
    load: optional('<file>', 'artifact of bench load to compare the simulation with', text),
    ...SYSTEM_OPTIONS,
  },
};
export type PlanOptions = ParsedOptions<typeof PLAN_COMMAND>;
