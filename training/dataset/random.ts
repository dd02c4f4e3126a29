/** Seeded draws. A stream depends on the seed and a name alone: samples of a repository do not depend on the others. */
import { createHash } from 'node:crypto';
import { wordsAt } from '../../services/lib/numeric/random.ts';

/** A whole number below 2^52 that stands for the texts. */
export function hash52(...texts: readonly string[]): number {
  const digest = createHash('sha256').update(texts.join('\0')).digest();
  return digest.readUIntBE(0, 6) * 16 + (digest.readUInt8(6) >>> 4);
}

const WORDS_PER_BLOCK = 4;

export class RandomStream {
  readonly #key: number;
  #drawn = 0;
  #block: readonly number[] = [];

  constructor(seed: number, name: string) {
    this.#key = hash52(String(seed), name);
  }

  /** From 0 to below 1, in steps of 2^-32. */
  uniform(): number {
    const at = this.#drawn++ % WORDS_PER_BLOCK;
    if (at === 0) this.#block = wordsAt(this.#key, Math.floor(this.#drawn / WORDS_PER_BLOCK));
    return this.#block[at]! / 2 ** 32;
  }

  /** A whole number from 0 to below `count`. */
  below(count: number): number {
    return Math.floor(this.uniform() * count);
  }

  /** Poisson-distributed, by Knuth's product of uniform numbers. @param mean below 700, where exp(-mean) is above 0. */
  poisson(mean: number): number {
    const end = Math.exp(-mean);
    let product = this.uniform();
    let drawn = 0;
    for (; product > end; drawn++) product *= this.uniform();
    return drawn;
  }

  /** Brings items into random order, in place (Fisher and Yates). */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [items[i], items[j]] = [items[j]!, items[i]!];
    }
    return items;
  }
}
