/** Every setting of the gateway, put together from its rooms. */
import { DEVICE_SETTINGS, MODEL_SETTINGS } from '../lib/engine/settings.ts';
import type { ConfigOf } from '../lib/process/config.ts';
import { address } from '../lib/process/setting-types.ts';
import { PROCESS_SETTINGS } from '../lib/process/settings.ts';
import { SEARCH_SETTINGS, STORE_SETTINGS } from '../lib/rag/settings.ts';
import { RPC_SETTINGS } from '../lib/rpc/settings.ts';
import { ADMISSION_SETTINGS } from './admission/settings.ts';
import { COMPLETION_SETTINGS } from './completion/settings.ts';
import { HTTP_SETTINGS } from './http/settings.ts';
import { TENANT_SETTINGS } from './tenants/settings.ts';
import { WORKER_POOL_SETTINGS } from './workers/settings.ts';

export const GATEWAY_SETTINGS = {
  ...PROCESS_SETTINGS,
  ...MODEL_SETTINGS,
  ...WORKER_POOL_SETTINGS,
  indexer: address.describe(
    'address of the indexer that PUT and DELETE /v1/repos go to, host:port; no indexer when empty',
  ),
  ...STORE_SETTINGS,
  ...SEARCH_SETTINGS,
  threads: DEVICE_SETTINGS.threads, // dense and fused encode their queries in the gateway
  ...COMPLETION_SETTINGS,
  ...ADMISSION_SETTINGS,
  ...TENANT_SETTINGS,
  ...HTTP_SETTINGS,
  ...RPC_SETTINGS,
};
export type GatewayConfig = ConfigOf<typeof GATEWAY_SETTINGS>;
