/**
 * Turns chunks into vectors in the LLM's embedding space, through tokenizer, encoder and projector, in batches and off
 * the event loop. Pooling and L2 normalisation are part of the encoder's graph.
 */
import { Turns } from '../../async/turns.ts';
import { OrtSession, type SessionOptions, type Tensor } from '../../engine/ort.ts';
import type { Bundle } from '../../model/bundle/bundle.ts';
import { ServingError } from '../../process/errors.ts';
import { metrics } from '../../process/metrics.ts';
import { assertServes, DEFAULT_RETRIEVER, needsEmbeddings, type RetrieverName } from '../retriever-name.ts';
import { NO_VECTORS, withEmbeddings } from '../store/row.ts';
import { type EncoderInput, type InputIds, inputBuilder } from './encoder-input.ts';

export interface EncodedChunk {
  /** [hidden]; empty where nothing encodes. */
  readonly vector: Float32Array;
  /** [dim], of length 1; present if embeddings are kept. */
  readonly embedding?: Float32Array;
  /** The chunk was to be encoded by its syntax tree, did not parse, and was encoded by its source. */
  readonly fellBack: boolean;
}

/** The part of a model that indexing needs. */
export interface ContextEncoder {
  /** Identifies encoder, projector and what is kept of their outputs: rows of different fingerprints do not mix. */
  readonly fingerprint: string;
  /** Number of values in one vector; 0 where nothing encodes. */
  readonly hidden: number;
  /**
   * One vector per chunk, in the order of `chunks`.
   * @throws the signal's reason; ServingError runtime_failed.
   */
  encode(chunks: readonly EncoderInput[], signal?: AbortSignal): Promise<EncodedChunk[]>;
}

interface ContextEncoderOptions extends SessionOptions {
  /** The retriever of the index: for dense and fused the encoder's own embeddings are kept, too. */
  readonly retriever?: RetrieverName;
}

/**
 * Tokens of one batch, padding included: about ten chunks. On 2 cores, larger batches were measured to be no faster.
 */
export const BATCH_TOKENS = 1_024;

/** Chunks as they are, for a bundle without encoder and projector: its indexes serve context as text. */
const TEXT_ONLY: ContextEncoder = {
  fingerprint: NO_VECTORS,
  hidden: 0,
  async encode(chunks, signal) {
    signal?.throwIfAborted();
    return chunks.map(() => ({ vector: new Float32Array(0), fellBack: false }));
  },
};

/** @throws ServingError bundle_invalid if the bundle has no encoder and projector. */
export function contextOf({ dir, context: paths, manifest }: Bundle) {
  if (!paths || !manifest.context) {
    throw new ServingError(
      'bundle_invalid',
      `${dir} has no encoder and projector: export it with --encoder and --projector`,
    );
  }
  return { paths, fingerprint: manifest.context.fingerprint, settings: manifest.context.encoder };
}

/**
 * Loads encoder and projector of a bundle, if it has them. The caller must dispose of them.
 * @throws ServingError bundle_invalid if the bundle's tokenizer lacks a token that the encoder's input needs;
 *   config_invalid for a retriever that compares embeddings if the bundle has no encoder.
 */
export async function loadContextEncoder(
  bundle: Bundle,
  options: ContextEncoderOptions,
): Promise<ContextEncoder & { dispose(): void }> {
  const { retriever = DEFAULT_RETRIEVER } = options;
  assertServes(bundle, retriever);
  if (bundle.context === undefined) return { ...TEXT_ONLY, dispose: () => {} };
  const keepEmbeddings = needsEmbeddings(retriever);
  const { paths, fingerprint, settings } = contextOf(bundle);
  const inputs = await inputBuilder(bundle.dir, paths.tokenizerDir, settings);
  const encoder = await OrtSession.load(paths.encoder, options);
  const projector = await OrtSession.load(paths.projector, options).catch((error) => {
    encoder.dispose();
    throw error;
  });
  const { hidden } = bundle.manifest.llm.spec;
  const { dim } = settings;

  return {
    fingerprint: keepEmbeddings ? withEmbeddings(fingerprint) : fingerprint,
    hidden,
    async encode(chunks, signal) {
      const rows: ({ readonly index: number } & InputIds)[] = [];
      const turns = new Turns(); // parsing one chunk takes up to 5 ms, and up to 30 ms if it is nonsense
      for (const [index, chunk] of chunks.entries()) {
        rows.push({ index, ...inputs.build(chunk) });
        if (turns.over) await turns.next();
      }
      const encoded = new Array<EncodedChunk>(chunks.length);
      for (const batch of batches(rows)) {
        signal?.throwIfAborted();
        const done = metrics.encodeTime.startTimer();
        const ran = await encoder.run(encoderInputs(batch.map((row) => row.ids)), ['embeddings'], signal);
        const embeddings = ran.embeddings as Tensor;
        const { soft_tokens } = await projector.run({ embeddings }, ['soft_tokens'], signal);
        done();
        const [soft, dense] = [soft_tokens?.data as Float32Array, embeddings.data as Float32Array];
        for (const [i, { index, fellBack }] of batch.entries()) {
          const vector = soft.slice(i * hidden, (i + 1) * hidden);
          const embedding = keepEmbeddings ? dense.slice(i * dim, (i + 1) * dim) : undefined;
          encoded[index] = { vector, embedding, fellBack };
        }
      }
      metrics.unparsedChunks.inc(rows.filter((row) => row.fellBack).length);
      return encoded;
    },
    dispose() {
      inputs.dispose();
      encoder.dispose();
      projector.dispose();
    },
  };
}

/** Groups rows of similar length, so that there is little padding. */
function batches<R extends { readonly ids: readonly number[] }>(rows: readonly R[]): R[][] {
  const made: R[][] = [];
  let batch: R[] = [];
  for (const row of rows.toSorted((a, b) => a.ids.length - b.ids.length)) {
    // Lengths ascend: the newest row is the longest, and all rows are padded to its length.
    if (batch.length > 0 && (batch.length + 1) * row.ids.length > BATCH_TOKENS) {
      made.push(batch);
      batch = [];
    }
    batch.push(row);
  }
  if (batch.length > 0) made.push(batch);
  return made;
}

/** Pads rows of token ids on the right, with any id. A text without tokens becomes one token of padding. */
export function encoderInputs(rows: readonly (readonly number[])[]): Record<string, Tensor> {
  const lengths = Int32Array.from(rows, (ids) => Math.max(ids.length, 1));
  const longest = Math.max(...lengths);
  const ids = new BigInt64Array(rows.length * longest);
  for (const [i, row] of rows.entries()) for (const [j, id] of row.entries()) ids[i * longest + j] = BigInt(id);
  return {
    input_ids: { type: 'int64', dims: [rows.length, longest], data: ids },
    lengths: { type: 'int32', dims: [rows.length], data: lengths },
  };
}
