/** The settings of a prefill worker. */
import { z } from 'zod';
import { ENGINE_SETTINGS } from '../lib/engine/settings.ts';
import type { ConfigOf } from '../lib/process/config.ts';
import { milliseconds, whole } from '../lib/process/setting-types.ts';
import { QUEUE_SETTINGS } from '../lib/request/settings.ts';
import { WORKER_SETTINGS } from '../lib/worker/settings.ts';

const KV_DISK_PRECISIONS = ['exact', 'int8'] as const;

/** The settings of computing prompts and staging their KV caches. */
export const PROMPT_SETTINGS = {
  prefillChunkTokens: whole(1, 65536).default(512).describe('tokens of one prompt chunk'),
  queueTokens: whole(1).default(65_536).describe('prompt tokens that may wait in a prefill worker'),
  ...QUEUE_SETTINGS,
  kvDiskDir: z
    .string()
    .default('')
    .describe(
      'folder in which the KV of kept prompts outlives the worker, for this user alone; workers may share it; none when ' +
        'empty',
    ),
  kvDiskBytes: whole(1 << 20)
    .default(10 * 2 ** 30)
    .describe('bytes that --kv-disk-dir may hold; what was used least recently is deleted first'),
  kvDiskPrecision: z
    .enum(KV_DISK_PRECISIONS)
    .default('exact')
    .describe(
      'how KV lies on disk: exact gives the tokens that the KV in memory gives; int8 takes about a quarter of the ' +
        'bytes, and may change tokens; KV of a bundle that computes in 16 bits is always exact',
    ),
  kvLeaseMs: milliseconds(1).default(30_000).describe('time that a staged KV cache waits for its decoder, in ms'),
};

export const PREFILL_SETTINGS = { ...WORKER_SETTINGS, ...ENGINE_SETTINGS, ...PROMPT_SETTINGS };
export type PrefillConfig = ConfigOf<typeof PREFILL_SETTINGS>;
