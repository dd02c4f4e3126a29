/**
 * One random token from logits: temperature, then min-p, top-k and top-p (vLLM's order), then a draw by the inverse of
 * the cumulative distribution in order of ids. Linear in the vocabulary: nothing sorts it, since the place of the cut is
 * first narrowed down with a histogram. Candidates rank by weight, then by lower id, so every cut is exact.
 */
import type { Sampling } from '../request/sequence.ts';

/**
 * Log-weights below this are dropped: 2^18 such tokens (no vocabulary is larger) together weigh less than 2^-53 of the
 * likeliest one, which a uniform number of 53 bits cannot hit.
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
 * @param u uniform in [0, 1).
 */
export function draw(logits: Float32Array, max: number, sampling: Sampling, u: number): number {
  let count = collect(logits, max, sampling);
  if (sampling.topK > 0 && sampling.topK < count) count = keepBest(count, sampling.topK, false);
  let total = weigh(count);
  if (sampling.topP < 1) {
    count = keepBest(count, sampling.topP * total, true);
    total = 0;
    for (let c = 0; c < count; c++) total += weights[c]!;
  }
  const target = u * total;
  let reached = 0;
  for (let c = 0; c < count; c++) {
    reached += weights[c]!;
    if (reached > target) return ids[c]!;
  }
  return ids[count - 1]!; // `target` may round up to `total`
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
      weights[kept] = weights[c]!;
      kept++;
    }
  }
  return kept;
}
