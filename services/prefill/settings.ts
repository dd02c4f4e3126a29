/** The settings of a prefill worker. */
import { ENGINE_SETTINGS } from '../lib/engine/settings.ts';
import type { ConfigOf } from '../lib/process/config.ts';
import { milliseconds, whole } from '../lib/process/setting-types.ts';
import { QUEUE_SETTINGS } from '../lib/request/settings.ts';
import { WORKER_SETTINGS } from '../lib/worker/settings.ts';

/** The settings of computing prompts and staging their KV caches. */
export const PROMPT_SETTINGS = {
  prefillChunkTokens: whole(1, 65536).default(512).describe('tokens of one prompt chunk'),
  queueTokens: whole(1).default(65_536).describe('prompt tokens that may wait in a prefill worker'),
  ...QUEUE_SETTINGS,
  kvLeaseMs: milliseconds(1).default(30_000).describe('time that a staged KV cache waits for its decoder, in ms'),
};

export const PREFILL_SETTINGS = { ...WORKER_SETTINGS, ...ENGINE_SETTINGS, ...PROMPT_SETTINGS };
export type PrefillConfig = ConfigOf<typeof PREFILL_SETTINGS>;
