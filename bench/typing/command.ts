/** The command `llavacode bench typing`. */
import { PROMPT_ORDERS } from '../../services/lib/text/prompt-format.ts';
import { oneOf, option, optional, type ParsedOptions, SYSTEM_OPTIONS, whole, words } from '../options.ts';
import { CONTEXTS } from '../system/context.ts';

export const TYPING_COMMAND = {
  name: 'typing',
  description: 'an editing session, keystroke by keystroke',
  options: {
    debounceMs: option('<n>', 'length of the pause in typing that asks for a completion, in ms', whole, 200),
    outputTokens: option('<n>', 'upper bound on the tokens of an answer', whole, 16),
    contexts: option('<list>', `contexts of the prompts: ${CONTEXTS.join(', ')}`, words(CONTEXTS), [
      'compressed',
      'text',
    ]),
    pace: oneOf(
      '<kind>',
      'at the pace it was typed, or waiting for each answer; or pairs of keystrokes, after a warm-up and after an ' +
        'answer, or with and without a restart of the worker between them',
      ['typed', 'answered', 'warm-up', 'restart'],
      'typed',
    ),
    promptOrders: option('<list>', 'psm, spm: see --prompt-order of the gateway', words(PROMPT_ORDERS), ['psm']),
    engine: oneOf('<kind>', 'the model, or a scripted engine that predicts right', ['model', 'scripted'], 'model'),
    prefillMs: option('<n>', 'time of a scripted engine for a prompt, in ms', whole, 80),
    stepMs: option('<n>', 'time of a scripted engine for a decode step, in ms', whole, 25),
    lingerMs: option('<n>', 'see --linger-ms of the gateway; for a scripted engine, in ms', whole, 2_000),
    kvDiskPrecision: oneOf(
      '<kind>',
      'see --kv-disk-precision of a worker; for --pace restart',
      ['exact', 'int8'],
      'exact',
    ),
    keystrokes: optional('<n>', 'first keystrokes of the session to replay; all if not given', whole),
    ...SYSTEM_OPTIONS,
  },
};
export type TypingOptions = ParsedOptions<typeof TYPING_COMMAND>;
