/** The settings of a decode worker. */
import { z } from 'zod';
import { ENGINE_SETTINGS } from '../lib/engine/settings.ts';
import { WIRE_TYPES } from '../lib/kv/wire.ts';
import type { ConfigOf } from '../lib/process/config.ts';
import { whole } from '../lib/process/setting-types.ts';
import { SPECULATION_SETTINGS } from '../lib/request/settings.ts';
import { WORKER_SETTINGS } from '../lib/worker/settings.ts';

/** The settings of taking KV caches over and continuing their sequences. */
export const SEQUENCE_SETTINGS = {
  ...SPECULATION_SETTINGS,
  queueSequences: whole(0).default(64).describe('sequences that may wait for a slot in a decode worker'),
  kvWire: z
    .enum(WIRE_TYPES)
    .default('float32')
    .describe(
      `how KV caches travel to this worker: ${WIRE_TYPES.join(', ')}; float32 is exact, float16 takes half ` +
        `and int8 about a quarter of the bytes; KV of a bundle that computes in 16 bits always travels as float16, unchanged`,
    ),
};

export const DECODE_SETTINGS = { ...WORKER_SETTINGS, ...ENGINE_SETTINGS, ...SEQUENCE_SETTINGS };
export type DecodeConfig = ConfigOf<typeof DECODE_SETTINGS>;
