/** The setting of everything that queues prompts: gateways and prefill workers alike. */
import { z } from 'zod';
import { QUEUE_ORDERS } from './queue-order.ts';

export const QUEUE_SETTINGS = {
  queueOrder: z
    .enum(QUEUE_ORDERS)
    .default('fifo')
    .describe(
      `order of waiting prompts: ${QUEUE_ORDERS.join(', or ')} (each second of waiting counts as 500 tokens less)`,
    ),
};
