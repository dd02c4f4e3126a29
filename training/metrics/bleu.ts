/**
 * The two n-gram parts of CodeBLEU: BLEU-4, and the same as a recall in which keywords weigh more than other words.
 * What one pair counts is summed over a corpus before anything is divided.
 */

/** Longest n-grams. */
const ORDERS = 4;
/** What stands for no match at all in an order beyond the first (Chen and Cherry's first smoothing). */
const EPSILON = 0.1;
/** Weight of a word that is not a keyword. */
const NAME_WEIGHT = 0.2;

/** Matches and possible matches, which are weights where words are weighted. */
export interface Share {
  readonly matched: number;
  readonly all: number;
}

export interface NgramCounts {
  /** By order, from single words to sequences of four. */
  readonly orders: readonly Share[];
  /** Length of the prediction and of the target in words. */
  readonly words: readonly [prediction: number, target: number];
}

/** N-grams by their text, words joined by a space: words have no white space within. */
function ngrams(words: readonly string[], order: number): Map<string, number> {
  const counts = new Map<string, number>();
  for (let i = 0; i + order <= words.length; i++) {
    const ngram = words.slice(i, i + order).join(' ');
    counts.set(ngram, (counts.get(ngram) ?? 0) + 1);
  }
  return counts;
}

const sum = (values: Iterable<number>) => {
  let total = 0;
  for (const value of values) total += value;
  return total;
};

const orders = (share: (order: number) => Share) => Array.from({ length: ORDERS }, (_, i) => share(i + 1));

/** Precision: which of the prediction's n-grams the target has, each as often as the target has it. */
export function ngramCounts(prediction: readonly string[], target: readonly string[]): NgramCounts {
  const share = (order: number): Share => {
    const [ours, theirs] = [ngrams(prediction, order), ngrams(target, order)];
    return {
      matched: sum([...ours].map(([ngram, count]) => Math.min(count, theirs.get(ngram) ?? 0))),
      all: Math.max(1, sum(ours.values())),
    };
  };
  return { orders: orders(share), words: [prediction.length, target.length] };
}

/**
 * Recall: which of the target's n-grams the prediction has; single words have weights. Each target counts as two words
 * long, because CodeXGLUE's program and the package on PyPI measure the pair of the target's words and their weights:
 * a prediction of three words or more has no penalty for brevity here.
 */
export function weightedNgramCounts(
  prediction: readonly string[],
  target: readonly string[],
  keywords: ReadonlySet<string>,
): NgramCounts {
  const share = (order: number): Share => {
    const [ours, theirs] = [ngrams(prediction, order), ngrams(target, order)];
    const weight = (ngram: string) => (order > 1 || keywords.has(ngram) ? 1 : NAME_WEIGHT);
    return {
      matched: sum([...theirs].map(([ngram, count]) => weight(ngram) * Math.min(count, ours.get(ngram) ?? 0))),
      all: Math.max(1, sum([...theirs].map(([ngram, count]) => weight(ngram) * count))),
    };
  };
  return { orders: orders(share), words: [prediction.length, 2] };
}

/**
 * The score of a corpus, from 0 to 1: the geometric mean of the orders' shares, less a penalty where predictions are
 * shorter than targets.
 */
export function ngramScore(corpus: readonly NgramCounts[]): number {
  const total = (of: (counts: NgramCounts) => number) => sum(corpus.map(of));
  const [prediction, target] = [total(({ words }) => words[0]), total(({ words }) => words[1])];
  const shares = orders((order) => ({
    matched: total((counts) => counts.orders[order - 1]!.matched),
    all: total((counts) => counts.orders[order - 1]!.all),
  }));
  if (shares[0]!.matched === 0) return 0;
  const logarithms = shares.map(({ matched, all }) => Math.log((matched || EPSILON) / all));
  const brevity = prediction > target ? 1 : Math.exp(1 - target / prediction);
  return brevity * Math.exp(sum(logarithms) / ORDERS);
}
