/**
 * The rate of an honest tenant that keeps within its share. A tenant keeps its TTFT beside attackers as long as it asks
 * for no more than its share of what the system computes while all of them want more: one that asks for more queues by
 * right, as long as the attackers' limits allow them to want more. So the soak measures what the system computes.
 */
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Door } from '../system/tenants.ts';
import { TOKENS_PER_REQUEST_A_SECOND } from './mix.ts';
import { OUTPUT_TOKENS, type Reference, sendStream, uncached } from './streams.ts';

/** Requests on the way while capacity is measured: twice as many as two decode workers have slots. */
const AT_ONCE = 32;
/** The measurement, after a time in which the batches fill, in ms. */
const MEASURED = { fromMs: 2_000, toMs: 8_000 };
/**
 * Sends more than the system can compute, for a few seconds.
 * @param door of a tenant without limits; nobody else asks for anything.
 * @param now monotonic clock, in ms.
 * @returns output tokens per second. The system computes at least as many tokens of whatever is asked for, because
 *   tokens of prompts take less time.
 * @throws ServingError internal if no request succeeds meanwhile.
 */
export async function measureCapacity(
  door: Door,
  references: readonly Reference[],
  now: () => number = () => performance.now(),
): Promise<number> {
  const { fromMs, toMs } = MEASURED;
  const startMs = now();
  const passedMs = () => now() - startMs;
  let answers = 0;
  const keepAsking = async (first: number) => {
    for (let i = first; passedMs() < toMs; i++) {
      const { outcome } = await sendStream(door, uncached(references[i % references.length]!), startMs);
      if (outcome === 'ok' && passedMs() >= fromMs && passedMs() < toMs) answers++;
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, (_, i) => keepAsking(i)));
  if (answers === 0) {
    throw new ServingError('internal', `none of ${AT_ONCE} requests at once was answered within ${toMs} ms`);
  }
  return (1_000 * answers * OUTPUT_TOKENS) / (toMs - fromMs);
}

/**
 * Requests per second of the mix with which one of so many tenants of equal weight asks for its share, if all tokens of
 * its prompts had to be computed. Most are cached, so it asks for about half: bursts of its requests fit in as well.
 * @param capacity tokens per second that all tenants are charged for.
 */
export const rateWithinShare = (capacity: number, tenants: number) => capacity / tenants / TOKENS_PER_REQUEST_A_SECOND;
