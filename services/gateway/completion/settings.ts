/** The settings of one completion: the form of its prompt, its replays, what is logged of it. */
import { z } from 'zod';
import type { ConfigOf } from '../../lib/process/config.ts';
import { milliseconds, whole } from '../../lib/process/setting-types.ts';
import { SPECULATION_SETTINGS } from '../../lib/request/settings.ts';
import { FORMAT_NAMES, PROMPT_ORDERS } from '../../lib/text/prompt-format.ts';

const PROMPT_FORMATS = ['auto', ...FORMAT_NAMES] as const;

export const COMPLETION_SETTINGS = {
  ...SPECULATION_SETTINGS,
  promptFormat: z
    .enum(PROMPT_FORMATS)
    .default('auto')
    .describe(`form of prompts: ${PROMPT_FORMATS.join(', ')}; auto goes by the tokenizer's tokens`),
  promptOrder: z
    .enum(PROMPT_ORDERS)
    .default('psm')
    .describe(
      `order of fill-in-the-middle, ${PROMPT_ORDERS.join(' or ')}: the text after the cursor comes last (psm) or ` +
        'first (spm: keeps more of the KV between keystrokes, for models trained with it)',
    ),
  suffixUnsupported: z
    .enum(['report', 'refuse'])
    .default('report')
    .describe(
      'what a request with suffix gets from a model that cannot fill in the middle: report (a completion of the ' +
        'prompt alone, which says so) or refuse (400)',
    ),
  typedThrough: z
    .enum(['off', 'exact', 'session'])
    .default('session')
    .describe(
      'a prompt that is an earlier one and what was typed of its output goes on with that output: where it is what a ' +
        'new computation gives (exact), within a session also in fill-in-the-middle (session), or never (off)',
    ),
  lingerMs: milliseconds(0)
    .default(0)
    .describe(
      'time that the output of a client that hung up goes on, for the next keystroke, while nobody waits, in ms',
    ),
  maxReplays: whole(0)
    .default(3)
    .describe('times that a part of a request is done again by other workers when its worker is lost'),
  logSamplePercent: whole(0, 100)
    .default(0)
    .describe('percentage of completions whose text is logged with every letter and digit blotted out'),
};
export type CompletionConfig = ConfigOf<typeof COMPLETION_SETTINGS>;
