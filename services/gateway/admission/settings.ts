/** The settings of admission: how much work is taken in, and whose. */
import { z } from 'zod';
import type { ConfigOf } from '../../lib/process/config.ts';
import { flag, milliseconds, whole } from '../../lib/process/setting-types.ts';
import { QUEUE_SETTINGS } from '../../lib/request/settings.ts';

export const ADMISSION_SETTINGS = {
  maxInflight: whole(1)
    .default(256)
    .describe('sequences (prompts × best_of) in flight at once; a tenant below its share may exceed it, up to double'),
  requestTimeoutMs: milliseconds(1).default(60_000).describe('deadline of one request, in ms'),
  targetTtftMs: milliseconds(1)
    .default(10_000)
    .describe('requests that could not have their first token within this time are refused, in ms'),
  qualityLadder: flag
    .default(false)
    .describe(
      'under load, context as text steps down to the best chunks as text and the others as soft tokens (mixed), and ' +
        'to soft tokens alone (compressed), before requests are refused; a tenant begins to when it waits half of ' +
        '--target-ttft-ms',
    ),
  preemptAfterMs: milliseconds(0)
    .default(20)
    .describe(
      'time after which a prompt that finds no slot gets one of a tenant that holds more than its share, in ms; at ' +
        'least 50 where gateways share the slots',
    ),
  spareSlots: whole(0)
    .default(1)
    .describe(
      'decode slots of each worker that tenants with their share of slots or more leave free for others, while ' +
        'several tenants are active: those that asked in the last minute; at most a quarter of its slots',
    ),
  ...QUEUE_SETTINGS,
  tenantWeights: z
    .string()
    .refine((list) => parseTenantWeights(list) !== undefined, 'must be tenant=weight[,…], weights from 1 to 999999')
    .default('')
    .describe('shares of tenants under load, tenant=weight[,…]; 1 for those that are not named'),
};
export type AdmissionConfig = ConfigOf<typeof ADMISSION_SETTINGS>;

/** The weight of each tenant that the setting names; undefined where its form is wrong. */
export function parseTenantWeights(list: string): ReadonlyMap<string, number> | undefined {
  const items = list === '' ? [] : list.split(',');
  if (!items.every((item) => /^[\w-]+=[1-9]\d{0,5}$/.test(item))) return undefined;
  return new Map(items.map((item) => item.split('=')).map(([tenant = '', weight]) => [tenant, Number(weight)]));
}
