/** The settings of the indexer service, and those of `llavacode index`. */
import { z } from 'zod';
import { DEVICE_SETTINGS, MODEL_SETTINGS } from '../lib/engine/settings.ts';
import type { ConfigOf } from '../lib/process/config.ts';
import { file, whole } from '../lib/process/setting-types.ts';
import { INDEXING_SETTINGS, UPLOAD_SETTINGS } from '../lib/rag/settings.ts';
import { RPC_SERVICE_SETTINGS } from '../lib/worker/settings.ts';

export const INDEX_SETTINGS = {
  model: MODEL_SETTINGS.model,
  requireSigned: MODEL_SETTINGS.requireSigned,
  ...DEVICE_SETTINGS,
  ...INDEXING_SETTINGS,
};

/** Where `llavacode up` listens if nobody says otherwise. */
export const DEFAULT_URL = 'http://127.0.0.1:8000';

/** How `llavacode index` reaches a running system. */
export const INDEX_CLIENT_SETTINGS = {
  url: z
    .string()
    .refine(
      (text) => /^https?:\/\/[^/]/.test(text) && URL.canParse(text),
      'must be http://host:port or https://host:port',
    )
    .default(DEFAULT_URL)
    .describe('gateway of the running system that indexes what is sent to it'),
  apiKey: z.string().default('').describe('key for a gateway with --api-keys-file'),
  apiKeyFile: file.describe('file that holds this key, so that it stands in no list of processes'),
};

export const INDEXER_SETTINGS = {
  ...RPC_SERVICE_SETTINGS,
  ...INDEX_SETTINGS,
  ...UPLOAD_SETTINGS,
  maxRepoBytes: whole(1024)
    .default(1024 * 1024 * 1024)
    .describe('most bytes that an uploaded repository may unpack to'),
  maxRepoFiles: whole(1).default(200_000).describe('most files and folders that an uploaded repository may have'),
  reembedShare: whole(5, 100)
    .default(100)
    .describe(
      'largest share of the time, in percent, in which chunks are encoded anew for the candidate of a rollout: below 100 ' +
        'four at a time, which wait up to 1 s until others have less than half of the cores, and then the indexer rests, ' +
        'so that what else runs on its machine finds the CPU and its caches free',
    ),
};
export type IndexerConfig = ConfigOf<typeof INDEXER_SETTINGS>;
