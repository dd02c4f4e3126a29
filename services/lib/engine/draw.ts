/**
 * Draws one random token from logits: temperature, then min-p, top-k and top-p (vLLM's order), then Gumbel-max: each
 * candidate's log-weight plus its own noise -ln(-ln u), of which the largest wins, so that each candidate is drawn as
 * often as its weight says (Maddison, Tarlow and Minka, "A* Sampling", NIPS 2014, section 2).
 *
 * When a lost stream goes on with another worker, the logits there differ by up to 7e-6, and the draws should not. With
 * Gumbel-max only a near tie for the first place can change a draw: 1 of 2 million. Inverting the cumulative
 * distribution, which has a boundary at every token, changed 1 of 5,000 (logits of tiny-coder, 3e-6 of noise,
 * temperature 0.8).
 *
 * The time is linear in the vocabulary: nothing sorts it, because a histogram first narrows down the place of a cut.
 * Candidates rank by weight, then by lower id, so every cut is exact.
 */

import { noiseBits, wordsAt } from '../numeric/random.ts';
import type { Sampling } from '../request/next-token.ts';

/**
 * Log-weights below this are dropped. Even among 2^18 such tokens (no vocabulary is larger) one would be drawn less
 * than once in 2^53 draws.
 */
const NEGLIGIBLE = -(53 + 18) * Math.LN2;
const BUCKETS = 2048;

/**
 * Working memory, as large as the largest vocabulary seen. All sequences share it: a draw never awaits, and the next
 * one reads nothing that it leaves behind.
 */
const histogram = new Float64Array(BUCKETS);
let ids = new Int32Array(0);
let logWeights = new Float64Array(0);
let weights = new Float64Array(0);

/**
 * @param logits `[vocab]` with penalties and biases applied, none NaN; read only.
 * @param max the largest logit, finite.
 * @param position place of the token in the output. The noise depends on (sampling.seed, position, token id) alone.
 */
export function draw(logits: Float32Array, max: number, sampling: Sampling, position: number): number {
  const { topK, topP, minP } = sampling;
  const cut = topK > 0 || topP < 1 || minP > 0;
  return race(logits, max, sampling, position, cut ? candidates(logits, max, sampling) : undefined);
}

/** Id of the candidate that wins. @param among ids of the candidates; undefined for the whole vocabulary. */
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
    // The noise is below -ln(high / 2^32). This bound rules out nearly all candidates without computing a logarithm.
    if (high > 0 && logWeight + (Math.clz32(high) + 1) * Math.LN2 <= best) continue;
    const v = (high * 2 ** 21 + (noiseBits(id, c, d) >>> 11) + 0.5) / 2 ** 53; // 1 - u
    const reached = logWeight - Math.log(-Math.log1p(-v));
    if (reached <= best) continue;
    best = reached;
    winner = id;
  }
  return winner;
}

/** Ids that remain after min-p, top-k and top-p, ascending. */
function candidates(logits: Float32Array, max: number, sampling: Sampling): Int32Array {
  const { topK, topP } = sampling;
  let count = collect(logits, max, sampling);
  if (topK > 0 && topK < count) count = keepBest(count, topK, false);
  if (topP < 1) count = keepBest(count, topP * weigh(count), true);
  return ids.subarray(0, count);
}

/**
 * Collects the candidates that min-p leaves, by ascending id, with log-weights relative to the likeliest. Returns their
 * count.
 */
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

/** Fills in the candidates' weights, 1 for the likeliest, and returns their sum. */
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
 * Keeps the fewest best candidates that reach `goal`, at least one, by ascending id, and returns their count.
 * @param byWeight whether `goal` is a sum of weights or a number of candidates.
 */
function keepBest(count: number, goal: number, byWeight: boolean): number {
  let lowest = 0;
  for (let c = 0; c < count; c++) if (logWeights[c]! < lowest) lowest = logWeights[c]!;
  const scale = lowest === 0 ? 0 : (BUCKETS - 1) / -lowest;

  histogram.fill(0);
  for (let c = 0; c < count; c++) histogram[(-logWeights[c]! * scale) | 0]! += byWeight ? weights[c]! : 1;
  const lastBucket = (-lowest * scale) | 0; // not empty, so that rounding of the sums cannot lead into an empty bucket
  let cut = 0;
  let reached = 0;
  while (cut < lastBucket && reached + histogram[cut]! < goal) reached += histogram[cut++]!;

  // The last candidate to keep lies in this bucket, the only one where the exact order matters.
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

/** Keeps the candidates that rank no lower than candidate `last`, and returns their count. */
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
