/**
 * What a projector may begin with in place of random numbers alone: its last layer is fitted by least squares, so that
 * a soft token is about the mean of the embeddings that the language model's own table has of the tokens in its part of
 * the chunk, rare ones counted more. It takes no pass through the language model.
 */
import type { TensorSource } from '../../services/lib/model/checkpoint/checkpoint.ts';
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import type { Embeddings } from '../data/embeddings.ts';
import type { SessionPlace } from '../step/graph-session.ts';
import { embeddingTable, rootMeanSquare, TrainableProjector } from '../step/projector.ts';
import type { Tensors } from '../step/tensors.ts';
import type { DistinctChunks } from './chunks.ts';
import { leastSquares } from './least-squares.ts';

/** Distinct chunks that it is fitted on. */
export const START_CHUNKS = 2_000;

interface TokenStartParts {
  /** All of them are encoded. */
  readonly chunks: DistinctChunks;
  readonly embeddings: Embeddings;
  readonly tokenizer: Tokenizer;
  readonly spec: DecoderSpec;
  readonly weights: TensorSource;
  readonly widths: readonly number[];
  /** Of a new projector; its last layer is replaced. */
  readonly initial: Tensors;
  readonly place: SessionPlace;
}

/**
 * @returns the parameters, and how well they do it: the mean cosine of soft tokens and what they were fitted to
 * @throws ServingError checkpoint_invalid, runtime_failed; the signal's reason.
 */
export async function tokenStart(
  { chunks, embeddings, tokenizer, spec, weights, widths, initial, place }: TokenStartParts,
  signal: AbortSignal,
): Promise<{ readonly parameters: Tensors; readonly cosine: number }> {
  const all = Array.from({ length: chunks.count }, (_, i) => chunks.at(i).chunk);
  const { perChunk, settings } = embeddings;
  const texts = all.map(({ text }) => tokenizer.encode(text, 'as text', 'within').slice(0, settings.maxTokens));
  const windows = texts.flatMap((ids) => windowsOf(ids, perChunk));
  const table = await embeddingTable(spec, weights);
  const wanted = wantedTokens(windows, rarityOf(texts), table, spec.hidden);

  const features = await featuresOf(await embeddings.of(all), widths, initial, place, signal);
  const width = widths.at(-2)!;
  const { weight, means } = leastSquares(features, width, wanted, spec.hidden);
  const bias = new Float64Array(spec.hidden);
  for (let o = 0; o < spec.hidden; o++) {
    for (let i = 0; i < width; i++) bias[o]! -= weight[o * width + i]! * means[i]!;
  }
  const made = project(features, width, weight, bias);
  const gain = rootMeanSquare(table) / rootMeanSquare(made);
  const last = `linear_${widths.length - 1}`;
  const parameters = new Map(initial);
  parameters.set(
    `${last}.weight`,
    Float32Array.from(weight, (value) => gain * value),
  );
  parameters.set(
    `${last}.bias`,
    Float32Array.from(bias, (value) => gain * value),
  );
  return { parameters, cosine: meanCosine(made, wanted, spec.hidden) };
}

/** The distinct tokens of each of `count` runs of a chunk's tokens, which are those of the encoder's graph. */
export function windowsOf(ids: readonly number[], count: number): number[][] {
  const edge = (window: number) => Math.floor((window * ids.length) / count);
  return Array.from({ length: count }, (_, w) => {
    const end = Math.max(edge(w + 1), edge(w) + 1);
    return [...new Set(ids.slice(edge(w), end))];
  });
}

/** The squared logarithm of the inverse share of chunks that have a token, as the weight of that token. */
function rarityOf(texts: readonly (readonly number[])[]): ReadonlyMap<number, number> {
  const chunksWith = new Map<number, number>();
  for (const id of texts.flatMap((ids) => [...new Set(ids)])) chunksWith.set(id, (chunksWith.get(id) ?? 0) + 1);
  return new Map([...chunksWith].map(([id, count]) => [id, Math.log((texts.length + 1) / count) ** 2]));
}

/** The weighted mean of the embeddings of each window's tokens, without what all windows have: [windows, hidden]. */
function wantedTokens(
  windows: readonly (readonly number[])[],
  rarity: ReadonlyMap<number, number>,
  table: Float32Array,
  hidden: number,
): Float32Array {
  const wanted = new Float32Array(windows.length * hidden);
  const common = new Float64Array(hidden);
  for (const [w, ids] of windows.entries()) {
    const total = ids.reduce((sum, id) => sum + rarity.get(id)!, 0);
    for (const id of ids) {
      const share = rarity.get(id)! / total;
      for (let i = 0; i < hidden; i++) wanted[w * hidden + i]! += share * table[id * hidden + i]!;
    }
    for (let i = 0; i < hidden; i++) common[i]! += wanted[w * hidden + i]! / windows.length;
  }
  return wanted.map((value, i) => value - common[i % hidden]!);
}

/** What the last layer of a projector reads: [windows, width]. */
async function featuresOf(
  encodings: Float32Array,
  widths: readonly number[],
  initial: Tensors,
  place: SessionPlace,
  signal: AbortSignal,
): Promise<Float32Array> {
  const width = widths.at(-2)!;
  const last = `linear_${widths.length - 1}`;
  const parameters = new Map(initial);
  const same = new Float32Array(width * width);
  for (let i = 0; i < width; i++) same[i * width + i] = 1;
  parameters.set(`${last}.weight`, same);
  parameters.set(`${last}.bias`, new Float32Array(width));
  const spec = { widths: [...widths.slice(0, -1), width] };
  const projector = await TrainableProjector.load(spec, parameters, 'frobenius', place);
  try {
    return await projector.project(encodings, signal);
  } finally {
    projector.dispose();
  }
}

function project(features: Float32Array, width: number, weight: Float64Array, bias: Float64Array): Float32Array {
  const outputs = bias.length;
  const made = new Float32Array((features.length / width) * outputs);
  for (let row = 0; row < features.length / width; row++) {
    for (let o = 0; o < outputs; o++) {
      let sum = bias[o]!;
      for (let i = 0; i < width; i++) sum += weight[o * width + i]! * features[row * width + i]!;
      made[row * outputs + o] = sum;
    }
  }
  return made;
}

function meanCosine(a: Float32Array, b: Float32Array, width: number): number {
  let sum = 0;
  for (let start = 0; start < a.length; start += width) {
    let [dot, ofA, ofB] = [0, 0, 0];
    for (let i = start; i < start + width; i++) {
      dot += a[i]! * b[i]!;
      ofA += a[i]! ** 2;
      ofB += b[i]! ** 2;
    }
    sum += dot / Math.sqrt(ofA * ofB || 1);
  }
  return (sum * width) / a.length;
}
