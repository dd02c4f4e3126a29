/** The settings of a service behind the gateway: where it listens, how it is found, how it proves who it is. */
import { z } from 'zod';
import { IDLE } from '../process/priority.ts';
import { address, whole } from '../process/setting-types.ts';
import { PROCESS_SETTINGS } from '../process/settings.ts';
import { isRedisUrl } from '../redis/url.ts';
import { RPC_SETTINGS } from '../rpc/settings.ts';

/** The settings of a service that listens for gRPC. */
export const RPC_SERVICE_SETTINGS = {
  ...PROCESS_SETTINGS,
  metricsHost: z
    .string()
    .min(1)
    .default('127.0.0.1')
    .describe("address of a worker's /metrics, /livez and /readyz, which need no key"),
  metricsPort: whole(0, 65535)
    .default(0)
    .describe("port of a worker's /metrics, /livez and /readyz; 0 takes a free one"),
  nice: whole(0, IDLE)
    .default(0)
    .describe(
      'how far the process steps back behind others of the machine, 0 to 19, as `nice` does: llavacode up takes 5, ' +
        'so that its gateway is heard at once while workers compute, and 5 more for decode workers (unless it is 0), ' +
        'so that first tokens do not wait for decoding; 20 leaves it the CPU that nobody else wants, by `chrt --idle` ' +
        'on Linux, and is 19 elsewhere',
    ),
  ...RPC_SETTINGS,
};

/** The settings of a worker, which gateways find. */
export const WORKER_SETTINGS = {
  ...RPC_SERVICE_SETTINGS,
  advertise: address.describe(
    "host:port under which others reach a worker; when empty the address it listens on, or this machine's first address if it listens on all",
  ),
  registry: z
    .string()
    .refine((url) => url === '' || isRedisUrl(url), 'must be redis://…')
    .default('')
    .describe('redis://… where a worker writes its address for gateways to find; no registry when empty'),
};
