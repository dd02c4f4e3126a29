/**
 * Turns chunks into vectors in the LLM's embedding space, through tokenizer, encoder and projector, in batches and off
 * the event loop. Pooling, of the chunk and of its windows, and L2 normalisation are part of the encoder's graph.
 */
import { Turns } from '../../async/turns.ts';
import { OrtSession, type SessionOptions, type Tensor } from '../../engine/ort.ts';
import { type Bundle, softPerChunkOf } from '../../model/bundle/bundle.ts';
import type { SoftPerChunk } from '../../model/bundle/choices.ts';
import { ServingError } from '../../process/errors.ts';
import { metrics } from '../../process/metrics.ts';
import { assertServes, DEFAULT_RETRIEVER, needsEmbeddings, type RetrieverName } from '../retriever-name.ts';
import { NO_VECTORS, withEmbeddings } from '../store/row.ts';
import { type EncoderInput, type InputIds, inputBuilder } from './encoder-input.ts';

export interface EncodedChunk {
  /** [softPerChunk, hidden]; empty where nothing encodes. */
  readonly vector: Float32Array;
  /** [dim], of length 1; present if embeddings are kept. */
  readonly embedding?: Float32Array;
  /** [dim], the mean of what the projector made the vector of; absent where nothing encodes. */
  readonly encoding?: Float32Array;
  /** The chunk was to be encoded by its syntax tree, did not parse, and was encoded by its source. */
  readonly fellBack: boolean;
}

/** The part of a model that indexing needs. */
export interface ContextEncoder {
  /** Identifies encoder, projector and what is kept of their outputs: rows of different fingerprints do not mix. */
  readonly fingerprint: string;
  /** Number of values in the vector of one soft token; 0 where nothing encodes. */
  readonly hidden: number;
  /** Soft tokens of one chunk. */
  readonly softPerChunk: SoftPerChunk;
  /**
   * One vector per chunk, in the order of `chunks`.
   * @throws the signal's reason; ServingError runtime_failed.
   */
  encode(chunks: readonly EncoderInput[], signal?: AbortSignal): Promise<EncodedChunk[]>;
  /**
   * Projects encodings [dim] that were not computed of one chunk, such as the means of those of files. They are scaled
   * to length 1 first if the encoder's own are.
   * @returns one vector [hidden] for each
   * @throws as {@link encode}.
   */
  project(encodings: readonly Float32Array[], signal?: AbortSignal): Promise<Float32Array[]>;
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
  softPerChunk: 1,
  async encode(chunks, signal) {
    signal?.throwIfAborted();
    return chunks.map(() => ({ vector: new Float32Array(0), fellBack: false }));
  },
  async project(encodings) {
    return encodings.map(() => new Float32Array(0));
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
  const softPerChunk = softPerChunkOf(bundle.manifest);
  const projected = async (data: Float32Array, signal: AbortSignal | undefined): Promise<Float32Array> => {
    const embeddings: Tensor = { type: 'float32', dims: [data.length / dim, dim], data };
    const { soft_tokens } = await projector.run({ embeddings }, ['soft_tokens'], signal);
    return soft_tokens?.data as Float32Array;
  };

  return {
    fingerprint: keepEmbeddings ? withEmbeddings(fingerprint) : fingerprint,
    hidden,
    softPerChunk,
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
        const outputs = softPerChunk === 1 ? ['embeddings'] : ['embeddings', 'windows'];
        const ran = await encoder.run(encoderInputs(batch.map((row) => row.ids)), outputs, signal);
        const dense = ran.embeddings?.data as Float32Array;
        const given = softPerChunk === 1 ? dense : (ran.windows?.data as Float32Array);
        const soft = await projected(given, signal);
        done();
        const [vectorSize, givenSize] = [softPerChunk * hidden, softPerChunk * dim];
        for (const [i, { index, fellBack }] of batch.entries()) {
          const vector = soft.slice(i * vectorSize, (i + 1) * vectorSize);
          const embedding = keepEmbeddings ? dense.slice(i * dim, (i + 1) * dim) : undefined;
          const encoding = meanRow(given.subarray(i * givenSize, (i + 1) * givenSize), dim);
          encoded[index] = { vector, embedding, encoding, fellBack };
        }
      }
      metrics.unparsedChunks.inc(rows.filter((row) => row.fellBack).length);
      return encoded;
    },
    async project(encodings, signal) {
      if (encodings.length === 0) return [];
      const rows = settings.normalize ? encodings.map(unit) : encodings;
      const data = new Float32Array(rows.length * dim);
      for (const [i, row] of rows.entries()) data.set(row, i * dim);
      const soft = await projected(data, signal);
      return rows.map((_, i) => soft.slice(i * hidden, (i + 1) * hidden));
    },
    dispose() {
      inputs.dispose();
      encoder.dispose();
      projector.dispose();
    },
  };
}

/** The mean of rows of so many values, which lie one after the other. */
function meanRow(rows: Float32Array, size: number): Float32Array {
  if (rows.length === size) return rows.slice();
  const count = rows.length / size;
  return Float32Array.from({ length: size }, (_, i) => {
    let sum = 0;
    for (let row = 0; row < count; row++) sum += rows[row * size + i]!;
    return sum / count;
  });
}

/** A vector scaled to length 1; one of zeros stays. */
function unit(vector: Float32Array): Float32Array {
  const length = Math.hypot(...vector);
  return length === 0 ? vector : vector.map((value) => value / length);
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
