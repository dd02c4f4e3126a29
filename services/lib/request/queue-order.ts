/** The rule that decides which waiting prompt is next: the same for the gateway's queue and the prefill workers'. */

export const QUEUE_ORDERS = ['fifo', 'shortest-first'] as const;
export type QueueOrder = (typeof QUEUE_ORDERS)[number];

export interface Queued {
  readonly tokens: number;
  /** Time of arrival, in ms of the monotonic clock. */
  readonly queuedAtMs: number;
}

/**
 * With shortest-first a second of waiting counts as this many tokens: after 4 s no prompt overtakes one of 2,000
 * tokens.
 */
const AGING_TOKENS_PER_SECOND = 500;

/**
 * Negative if `a` goes before `b`, 0 if they go in order of arrival. With shortest-first no prompt starves, because
 * waiting counts against length; it does so for all alike, so the order of two prompts never changes with time.
 */
export function compareQueued(a: Queued, b: Queued, order: QueueOrder): number {
  return order === 'fifo' ? 0 : rank(a) - rank(b);
}

const rank = ({ tokens, queuedAtMs }: Queued) => tokens + (queuedAtMs / 1000) * AGING_TOKENS_PER_SECOND;
