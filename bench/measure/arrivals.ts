/**
 * Send times of an open-loop load: seeded, and independent of how fast answers come. As in vLLM's `bench serve`, gaps
 * are gamma-distributed with shape `burstiness` (1 is Poisson, below 1 bursty, above 1 even) and rescaled so that
 * `count` requests take exactly count / rate seconds: runs at one rate offer the same load whatever the seed.
 */
import { wordsAt } from '../../services/lib/numeric/random.ts';

export const ARRIVALS = ['poisson', 'gamma', 'constant'] as const;
type ArrivalKind = (typeof ARRIVALS)[number];

interface ArrivalPlan {
  readonly kind: ArrivalKind;
  /** Requests per second. */
  readonly rate: number;
  readonly count: number;
  /** Shape of the gamma distribution; the other kinds ignore it. */
  readonly burstiness?: number;
  readonly seed: number;
}

/** Send times in ms from the start, ascending. */
export function arrivalTimes({ kind, rate, count, burstiness = 1, seed }: ArrivalPlan): number[] {
  const random = new RandomStream(seed);
  const shape = kind === 'poisson' ? 1 : burstiness;
  const gaps = Array.from({ length: count }, () => (kind === 'constant' ? 1 : random.gamma(shape)));
  const scale = (1000 * count) / rate / gaps.reduce((sum, gap) => sum + gap, 0);
  let at = 0;
  return gaps.map((gap) => {
    at += gap * scale;
    return at;
  });
}

/** A stream of random numbers that its seed determines. */
export class RandomStream {
  readonly #seed: number;
  #position = 0;

  constructor(seed: number) {
    this.#seed = seed;
  }

  /** A number in [0, 1), with 53 random bits. */
  uniform(): number {
    const [high, low] = wordsAt(this.#seed, this.#position++);
    return (high * 2 ** 21 + (low >>> 11)) / 2 ** 53;
  }

  /** A whole number in [0, below). */
  below(below: number): number {
    return Math.floor(this.uniform() * below);
  }

  /** A standard normal number, by the method of Box and Muller. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /**
   * A gamma-distributed number of mean `shape` and scale 1, by the method of Marsaglia and Tsang (2000); below shape 1
   * by their power of a uniform number.
   */
  gamma(shape: number): number {
    if (shape < 1) return this.gamma(shape + 1) * (1 - this.uniform()) ** (1 / shape);
    const d = shape - 1 / 3;
    const c = 1 / Math.sqrt(9 * d);
    for (;;) {
      const x = this.normal();
      const v = (1 + c * x) ** 3;
      if (v > 0 && Math.log(1 - this.uniform()) < 0.5 * x * x + d * (1 - v + Math.log(v))) return d * v;
    }
  }

  /** The items in random order (Fisher and Yates). */
  shuffled<T>(items: readonly T[]): T[] {
    const out = [...items];
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [out[i], out[j]] = [out[j]!, out[i]!];
    }
    return out;
  }
}
