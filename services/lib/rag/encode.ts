/**
 * Chunk texts → vectors in the LLM's embedding space: tokenizer → encoder → projector, in batches, off the event loop.
 * Pooling and L2 normalisation are part of the encoder's graph.
 */
import { OrtSession, type SessionOptions, type Tensor } from '../engine/ort.ts';
import type { Bundle, EncoderManifest } from '../model/bundle.ts';
import { ServingError } from '../process/errors.ts';
import { loadTokenizer, type Tokenizer } from '../text/tokenizer.ts';

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

/** Tokens of one batch, padding included: about ten chunks. Measured on 2 cores, more tokens at a time are not faster. */
const BATCH_TOKENS = 1_024;

/**
 * Loads encoder and projector of a bundle; to be disposed of.
 * @throws ServingError bundle_invalid where the bundle has none or its tokenizer lacks a token of the encoder's form.
 */
export async function loadContextEncoder(
  bundle: Bundle,
  options: SessionOptions,
): Promise<ContextEncoder & { dispose(): void }> {
  const { context: paths, manifest } = bundle;
  if (!paths || !manifest.context) {
    throw new ServingError(
      'bundle_invalid',
      `${bundle.dir} has no encoder and projector: export it with --encoder and --projector`,
    );
  }
  const { fingerprint, encoder: settings } = manifest.context;
  const tokenizer = await loadTokenizer(paths.tokenizerDir);
  const form = inputForm(tokenizer, settings, bundle.dir);
  const encoder = await OrtSession.load(paths.encoder, options);
  const projector = await OrtSession.load(paths.projector, options).catch((error) => {
    encoder.dispose();
    throw error;
  });
  const { hidden } = manifest.llm.spec;

  return {
    fingerprint,
    hidden,
    async encode(texts, signal) {
      const rows = texts.map((text, index) => ({ index, ids: inputIds(tokenizer, form, text) }));
      const vectors = new Array<Float32Array>(texts.length);
      for (const batch of batches(rows)) {
        signal?.throwIfAborted();
        const { embeddings } = await encoder.run(padded(batch.map((row) => row.ids)), ['embeddings'], signal);
        const { soft_tokens } = await projector.run({ embeddings: embeddings as Tensor }, ['soft_tokens'], signal);
        const soft = soft_tokens?.data as Float32Array;
        for (const [i, { index }] of batch.entries()) vectors[index] = soft.slice(i * hidden, (i + 1) * hidden);
      }
      return vectors;
    },
    dispose() {
      encoder.dispose();
      projector.dispose();
    },
  };
}

/** What stands around a text, and how many of its tokens are taken. */
interface InputForm {
  readonly before: readonly number[];
  readonly after: readonly number[];
  readonly textTokens: number;
}

function inputForm(tokenizer: Tokenizer, settings: EncoderManifest, dir: string): InputForm {
  const { before, after } = surroundings(tokenizer, settings, dir);
  return { before, after, textTokens: settings.maxTokens - before.length - after.length };
}

function surroundings(tokenizer: Tokenizer, { input, addSpecialTokens }: EncoderManifest, dir: string) {
  if (input === 'unixcoder') {
    const named = (name: string) => {
      const id = tokenizer.idOf(name);
      if (id === undefined) throw new ServingError('bundle_invalid', `the encoder's tokenizer in ${dir} lacks ${name}`);
      return id;
    };
    return { before: [named('<s>'), named('<encoder-only>'), named('</s>')], after: [named('</s>')] };
  }
  if (addSpecialTokens) return { before: tokenizer.leadingIds, after: tokenizer.trailingIds };
  return { before: [], after: [] };
}

function inputIds(tokenizer: Tokenizer, { before, after, textTokens }: InputForm, text: string): number[] {
  return [...before, ...tokenizer.encodeHead(text, textTokens), ...after];
}

interface EncoderRow {
  /** Place of the text among the caller's. */
  readonly index: number;
  readonly ids: readonly number[];
}

/** Rows of like length together, so that little is padded. */
function batches(rows: EncoderRow[]): EncoderRow[][] {
  const made: EncoderRow[][] = [];
  let batch: EncoderRow[] = [];
  for (const row of rows.sort((a, b) => a.ids.length - b.ids.length)) {
    // Ascending: the newest row is the longest, to which all are padded.
    if (batch.length > 0 && (batch.length + 1) * row.ids.length > BATCH_TOKENS) {
      made.push(batch);
      batch = [];
    }
    batch.push(row);
  }
  if (batch.length > 0) made.push(batch);
  return made;
}

/** Token ids on the left, padding (any id) on the right; a text without tokens is one of padding. */
function padded(rows: readonly (readonly number[])[]): Record<string, Tensor> {
  const lengths = Int32Array.from(rows, (ids) => Math.max(ids.length, 1));
  const longest = Math.max(...lengths);
  const ids = new BigInt64Array(rows.length * longest);
  for (const [i, row] of rows.entries()) for (const [j, id] of row.entries()) ids[i * longest + j] = BigInt(id);
  return {
    input_ids: { type: 'int64', dims: [rows.length, longest], data: ids },
    lengths: { type: 'int32', dims: [rows.length], data: lengths },
  };
}
