/** Which of the prompts that wait is next: the same rule wherever prompts wait. */

export const QUEUE_ORDERS = ['fifo', 'shortest-first'] as const;
export type QueueOrder = (typeof QUEUE_ORDERS)[number];

export interface Queued {
  readonly tokens: number;
  /** Of the monotonic clock. */
  readonly queuedAtMs: number;
}

/** Tokens that a second of waiting is worth, shortest first: nobody who comes 4 s later overtakes a prompt of 2,000. */
const AGING_TOKENS_PER_SECOND = 500;

/**
 * Negative where `a` goes before `b`, 0 where they go as they came. Shortest first lets nobody starve: waiting shortens, and
 * as it does so for all alike, time changes nothing between two.
 */
export function compareQueued(a: Queued, b: Queued, order: QueueOrder): number {
  return order === 'fifo' ? 0 : worth(a) - worth(b);
}

const worth = ({ tokens, queuedAtMs }: Queued) => tokens + (queuedAtMs / 1000) * AGING_TOKENS_PER_SECOND;
