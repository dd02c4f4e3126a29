/**
 * Chunk texts → vectors in the LLM's embedding space: tokenizer → encoder → projector, in batches, off the event loop.
 * The pooling and the L2 normalisation are part of the encoder's graph.
 */
import { ServingError } from '../process/errors.ts';

/** What indexing needs of a model. */
export interface ContextEncoder {
  /** Of encoder and projector: vectors of different fingerprints do not mix. */
  readonly fingerprint: string;
  /** Values of one vector. */
  readonly hidden: number;
  /**
   * One vector [hidden] per text, in the order of `texts`.
   * @throws the signal's reason; ServingError runtime_failed.
   */
  encode(texts: readonly string[], signal?: AbortSignal): Promise<Float32Array[]>;
}
