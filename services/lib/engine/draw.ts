/**
 * One random token from logits: temperature, then min-p, top-k and top-p (vLLM's order), then a race that each candidate
 * wins as often as its weight says: the largest log-weight plus noise -ln(-ln u) of the candidate's own (Gumbel-max;
 * Maddison, Tarlow and Minka, "A* Sampling", NIPS 2014, section 2).
 *
 * Where a lost stream goes on elsewhere, logits come back up to 7e-6 from what they were, and the draws should not. Here
 * only a near tie for the first place can turn: 1 of 2 million draws, where the inverse of the cumulative distribution,
 * which has a boundary at every token, turned 1 of 5,000 (logits of tiny-coder, 3e-6 of noise, temperature 0.8).
 *
 * Linear in the vocabulary: nothing sorts it, since the place of a cut is first narrowed down with a histogram.
 * Candidates rank by weight, then by lower id, so every cut is exact.
 */

import { noiseBits, wordsAt } from '../numeric/random.ts';
import type { Sampling } from '../request/next-token.ts';

/**
 * Log-weights below this are dropped: of 2^18 such tokens (no vocabulary is larger) one is drawn less often than once in
 * 2^53 times.
 */
const NEGLIGIBLE = -(53 + 18) * Math.LN2;
const BUCKETS = 2048;

/**
 * Working memory, as large as the largest vocabulary seen. One is enough for all sequences: a draw never awaits, and
 * leaves nothing in it that the next one reads.
 */
const histogram = new Float64Array(BUCKETS);
let ids = new Int32Array(0);
let logWeights = new Float64Array(0);
let weights = new Float64Array(0);

/**
 * @param logits [vocab] with penalties and biases applied, none NaN; read only.
 * @param max the largest of them, finite.
 * @param position of the token in the output. The noise depends on (sampling.seed, position, token id) alone.
 */
export function draw(logits: Float32Array, max: number, sampling: Sampling, position: number): number {
  const { topK, topP, minP } = sampling;
  const cut = topK > 0 || topP < 1 || minP > 0;
  return race(logits, max, sampling, position, cut ? candidates(logits, max, sampling) : undefined);
}

/** Id of the candidate that wins, among all where they are not given. */
function race(
  logits: Float32Array,
  max: number,
  { temperature, seed }: Sampling,
  position: number,
  among: Int32Array | undefined,
): number {
  const [a, b, c, d] = wordsAt(seed, position);
  const count = among?.length ?? logits.length;
  let best = -Infinity;
  let winner = among?.[0] ?? 0;
  for (let i = 0; i < count; i++) {
    const id = among === undefined ? i : among[i]!;
    const logWeight = (logits[id]! - max) / temperature;
    const high = noiseBits(id, a, b);
    // Noise is below -ln(high / 2^32): by that bound nearly all are out, without a logarithm.
    if (high > 0 && logWeight + (Math.clz32(high) + 1) * Math.LN2 <= best) continue;
    const v = (high * 2 ** 21 + (noiseBits(id, c, d) >>> 11) + 0.5) / 2 ** 53; // 1 - u
    const reached = logWeight - Math.log(-Math.log1p(-v));
    if (reached <= best) continue;
    best = reached;
    winner = id;
  }
  return winner;
}

/** Ids that min-p, top-k and top-p leave, ascending. */
function candidates(logits: Float32Array, max: number, sampling: Sampling): Int32Array {
  const { topK, topP } = sampling;
  let count = collect(logits, max, sampling);
  if (topK > 0 && topK < count) count = keepBest(count, topK, false);
  if (topP < 1) count = keepBest(count, topP * weigh(count), true);
  return ids.subarray(0, count);
}

/** Candidates that min-p leaves, in order of ids, with their log-weights relative to the likeliest; their count. */
function collect(logits: Float32Array, max: number, { temperature, minP }: Sampling): number {
  const vocab = logits.length;
  if (ids.length < vocab) {
    ids = new Int32Array(vocab);
    logWeights = new Float64Array(vocab);
    weights = new Float64Array(vocab);
  }
  const floor = max + temperature * Math.max(Math.log(minP), NEGLIGIBLE);
  let count = 0;
  for (let id = 0; id < vocab; id++) {
    const logit = logits[id]!;
    if (logit >= floor) {
      ids[count] = id;
      logWeights[count] = (logit - max) / temperature;
      count++;
    }
  }
  return count;
}

/** Fills in the candidates' weights, 1 for the likeliest; their sum. */
function weigh(count: number): number {
  let total = 0;
  for (let c = 0; c < count; c++) {
    const weight = Math.exp(logWeights[c]!);
    weights[c] = weight;
    total += weight;
  }
  return total;
}

/**
 * Keeps the fewest best candidates that reach `goal`, at least one, in order of ids; their count.
 * @param byWeight whether `goal` is a sum of weights or a number of candidates.
 */
function keepBest(count: number, goal: number, byWeight: boolean): number {
  let lowest = 0;
  for (let c = 0; c < count; c++) if (logWeights[c]! < lowest) lowest = logWeights[c]!;
  const scale = lowest === 0 ? 0 : (BUCKETS - 1) / -lowest;

  histogram.fill(0);
  for (let c = 0; c < count; c++) histogram[(-logWeights[c]! * scale) | 0]! += byWeight ? weights[c]! : 1;
  const lastBucket = (-lowest * scale) | 0; // not empty, so rounding of the sums cannot lead into an empty one
  let cut = 0;
  let reached = 0;
  while (cut < lastBucket && reached + histogram[cut]! < goal) reached += histogram[cut++]!;

  // The last one to keep lies in this bucket; only here does the exact order count.
  const edge: number[] = [];
  for (let c = 0; c < count; c++) if (((-logWeights[c]! * scale) | 0) === cut) edge.push(c);
  edge.sort((a, b) => logWeights[b]! - logWeights[a]! || a - b);
  let last = 0;
  for (const c of edge) {
    last = c;
    reached += byWeight ? weights[c]! : 1;
    if (reached >= goal) break;
  }
  return keepDownTo(count, last);
}

/** Keeps what ranks no lower than candidate `last`; the count of it. */
function keepDownTo(count: number, last: number): number {
  const lowest = logWeights[last]!;
  let kept = 0;
  for (let c = 0; c < count; c++) {
    const logWeight = logWeights[c]!;
    if (logWeight > lowest || (logWeight === lowest && c <= last)) {
      ids[kept] = ids[c]!;
      logWeights[kept] = logWeight;
      kept++;
    }
  }
  return kept;
}
