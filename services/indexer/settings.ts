/** The settings of the indexer service, and those of `llavacode index`. */
import { DEVICE_SETTINGS, MODEL_SETTINGS } from '../lib/engine/settings.ts';
import type { ConfigOf } from '../lib/process/config.ts';
import { whole } from '../lib/process/setting-types.ts';
import { INDEXING_SETTINGS, UPLOAD_SETTINGS } from '../lib/rag/settings.ts';
import { RPC_SERVICE_SETTINGS } from '../lib/worker/settings.ts';

export const INDEX_SETTINGS = { model: MODEL_SETTINGS.model, ...DEVICE_SETTINGS, ...INDEXING_SETTINGS };
export type IndexConfig = ConfigOf<typeof INDEX_SETTINGS>;

export const INDEXER_SETTINGS = {
  ...RPC_SERVICE_SETTINGS,
  ...INDEX_SETTINGS,
  ...UPLOAD_SETTINGS,
  maxRepoBytes: whole(1024)
    .default(1024 * 1024 * 1024)
    .describe('most bytes that an uploaded repository may unpack to'),
  maxRepoFiles: whole(1).default(200_000).describe('most files and folders that an uploaded repository may have'),
};
export type IndexerConfig = ConfigOf<typeof INDEXER_SETTINGS>;
