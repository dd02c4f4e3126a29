/** The result of `bench index`. */

/**
 * `by length` is what the indexer does: chunks of similar length share a batch. `as they come` fills batches of the
 * same size in the order of the repository, so that a short chunk is padded to the length of a long neighbour. `one at
 * a time` runs the encoder once per chunk.
 */
export const BATCHINGS = ['by length', 'as they come', 'one at a time'] as const;
export type Batching = (typeof BATCHINGS)[number];

/** The encoder of a bundle. */
export interface EncoderIdentity {
  /** Name of the network; undefined for bundles that do not say it. */
  readonly name: string | undefined;
  readonly layers: number | undefined;
  readonly randomWeights: boolean;
}

/** One way to encode. */
export interface EncoderCell {
  /** Weights of the encoder: `fp32`, or `int8` for 8 bits with a scale per block. */
  readonly weights: string;
  readonly batching: Batching;
  readonly workers: number;
  /** Threads of each worker. */
  readonly threads: number;
}

export type MeasuredCell = EncoderCell & {
  /** One measurement per round: from the start until the last worker has its last vector. */
  readonly seconds: readonly number[];
  /** CPU time of all workers together in each round. */
  readonly cpuSeconds: readonly number[];
};

export interface EncoderResult {
  readonly model: string;
  readonly encoder: EncoderIdentity;
  /** Chunks that every measurement encodes, their tokens, and chunks of the whole repository. */
  readonly chunks: number;
  readonly tokens: number;
  readonly repositoryChunks: number;
  readonly cells: readonly MeasuredCell[];
}

/** A whole run of `llavacode index`. */
export interface IndexingRun {
  readonly model: string;
  readonly encoder: EncoderIdentity;
  readonly run: 'first' | 'again';
  readonly chunks: number;
  readonly embedded: number;
  readonly seconds: number;
}

export interface IndexResult {
  readonly encoders: readonly EncoderResult[];
  readonly runs: readonly IndexingRun[];
}
