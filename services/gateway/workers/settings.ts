/**
 * The settings of workers as a gateway sees them: where they are, when they are lost, which of them computes a prompt.
 */
import { z } from 'zod';
import type { ConfigOf } from '../../lib/process/config.ts';
import { parseHostPort } from '../../lib/process/host-port.ts';
import { file, milliseconds, whole } from '../../lib/process/setting-types.ts';
import { isRedisUrl } from '../../lib/redis/url.ts';
import { LOCAL_PREFILL } from './prefill-location.ts';

/** Addresses, DNS names and registries. A list is taken too, as YAML has them. */
const workers = z
  .union([z.string(), z.array(z.string()).transform((items) => items.join(','))])
  .transform((list) => (isRedisUrl(list) ? [list] : list.split(',').map((item) => item.trim())))
  .refine(
    (list) => list.every((item) => isRedisUrl(item) || parseHostPort(item.replace(/^dns:/, '')) !== undefined),
    'must be host:port, dns:name:port (several with commas) or redis://…',
  )
  .readonly();

export const WORKER_POOL_SETTINGS = {
  prefillWorkers: workers.describe(
    'prefill workers: host:port[,…]; dns:name:port for all addresses of a name; redis://… for a registry',
  ),
  decodeWorkers: workers.describe('decode workers, named in the same ways'),
  ratesFile: file.describe(
    'file that llavacode plan --json has written: llavacode:desired_workers goes by its rates; ' +
      "by the prefill workers' own rate and by the slots of decode workers when empty",
  ),
  connectTimeoutMs: milliseconds(1).default(10_000).describe('deadline for reaching a worker or the indexer, in ms'),
  stallTimeoutMs: milliseconds(1)
    .default(10_000)
    .describe('silence after which a worker that neither answers nor sends a token counts as lost, in ms'),
  localPrefill: z
    .enum(LOCAL_PREFILL)
    .default('auto')
    .describe(
      `whether a prompt is computed where it is decoded, if a worker there can do both: ${LOCAL_PREFILL.join(', ')}`,
    ),
  localPrefillTokens: whole(0)
    .default(256)
    .describe('longest prompt that auto computes where it is decoded, in tokens'),
};
export type WorkerPoolConfig = ConfigOf<typeof WORKER_POOL_SETTINGS>;
