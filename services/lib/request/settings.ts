/** The setting of everything that queues prompts: gateways and prefill workers alike. */
import { z } from 'zod';
import { QUEUE_ORDERS } from './queue-order.ts';

export const QUEUE_SETTINGS = {
  queueOrder: z
    .enum(QUEUE_ORDERS)
    .default('fifo')
    .describe('which prompt is next; shortest-first counts each second of waiting as 500 tokens less'),
};
