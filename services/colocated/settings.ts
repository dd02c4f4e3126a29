/** The settings of a colocated worker: those of prefill and decode, and how they share the engine. */
import { SEQUENCE_SETTINGS } from '../decode/settings.ts';
import { ENGINE_SETTINGS } from '../lib/engine/settings.ts';
import type { ConfigOf } from '../lib/process/config.ts';
import { whole } from '../lib/process/setting-types.ts';
import { WORKER_SETTINGS } from '../lib/worker/settings.ts';
import { PROMPT_SETTINGS } from '../prefill/settings.ts';

export const COLOCATED_SETTINGS = {
  ...WORKER_SETTINGS,
  ...ENGINE_SETTINGS,
  ...PROMPT_SETTINGS,
  ...SEQUENCE_SETTINGS,
  sharedChunkTokens: whole(1, 65536)
    .default(128)
    .describe(
      'tokens of one prompt chunk while sequences decode in the same process: each chunk delays their next token',
    ),
};
export type ColocatedConfig = ConfigOf<typeof COLOCATED_SETTINGS>;
