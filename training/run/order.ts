/** The order in which a run sees its samples: each epoch is a permutation that depends on the seed and its number. */
import { wordsAt } from '../../services/lib/numeric/random.ts';

/** All indices below `count`, in random order. */
function permutation(count: number, seed: number, epoch: number): number[] {
  const keys = Array.from({ length: count }, (_, i) => wordsAt(seed, epoch * count + i));
  return keys.map((_, i) => i).sort((a, b) => keys[a]![0] - keys[b]![0] || keys[a]![1] - keys[b]![1] || a - b);
}

/**
 * The samples of a step. Batches follow one another without regard to the ends of epochs.
 * @param step counted from 0
 */
export function batchOf(step: number, batch: number, count: number, seed: number): number[] {
  const orders = new Map<number, number[]>();
  return Array.from({ length: batch }, (_, i) => {
    const at = step * batch + i;
    const epoch = Math.floor(at / count);
    const order = orders.get(epoch) ?? permutation(count, seed, epoch);
    orders.set(epoch, order);
    return order[at % count]!;
  });
}
