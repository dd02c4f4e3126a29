/** The settings that every service process has. */
import { z } from 'zod';
import { flag, milliseconds, whole } from './setting-types.ts';

const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const;

export const PROCESS_SETTINGS = {
  host: z.string().min(1).default('127.0.0.1').describe('address to listen on'),
  port: whole(0, 65535).default(8000).describe('port to listen on; 0 takes a free one'),
  insecureListen: flag
    .default(false)
    .describe(
      'listen beyond this machine even without API keys (gateway) or --rpc-cert or --rpc-secret-file (other services)',
    ),
  drainTimeoutMs: milliseconds(0)
    .default(30_000)
    .describe('time that running requests get to finish after SIGTERM, in ms'),
  logLevel: z
    .enum(LOG_LEVELS)
    .default('info')
    .describe(`least severe level that is logged: ${LOG_LEVELS.join(', ')}`),
};
