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

/** The setting of speculation: the gateway sends what an output may repeat, and decode workers verify it. */
export const SPECULATION_SETTINGS = {
  speculation: z
    .enum(['off', 'auto'])
    .default('off')
    .describe(
      'propose tokens that stand in retrieved chunks, the prompt, the output or a prediction, and verify several in ' +
        'one run while one sequence runs alone: auto where it pays by measured times, off never; the output is the same',
    ),
};
