/**
 * How much memory a run takes, by arithmetic, and how `--memory` is kept: first fewer rollouts decode together, then
 * activations are computed again instead of kept. Passes are of one sample each, so no batch can be made smaller.
 *
 * The arithmetic is compared with the peaks that `llavacode bench training` measures, for three shapes, two lengths of
 * prompts, and weights in 32-bit floats and 8 bits: a run is not accepted with less than it took there
 * (test/training/run/memory.test.ts).
 */
import { positionBytes } from '../../services/lib/kv/layout.ts';
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { GIB, sizeText } from '../../services/lib/process/memory.ts';
import type { TrainOptions } from './settings.ts';

/** Sequences that decode together when rollouts are made and memory does not matter. */
export const ROLLOUT_SLOTS = 16;

/** Bytes of a 32-bit float. */
const FLOAT = 4;
/** Bytes of a weight of the layers in the file, in both directions together. */
const MAPPED = { fp32: 4, fp16: 2, int8: 1, w8a8: 2 } as const satisfies Record<Frozen, number>;
/**
 * Bytes that a session with w8a8 keeps of each weight of its layers: one as it is packed. CPUs without instructions for
 * 8-bit products (VNNI) multiply without sign, and their session has a copy in that form besides, which takes the place
 * of the mapped file's; the rest is what the making of both leaves behind.
 */
const PACKED = 1.5;
/** Matrices of attention, [heads, rows, rows], that are there at a time on the way back. */
const SCORES = 5;
/** Node.js, ONNX Runtime and the projector, in bytes. */
const PROCESS = 0.15 * GIB;
/** Share of the memory that the arithmetic may fill; the rest is for its error, and for the data set. */
const FILLED = 0.9;

type Frozen = TrainOptions['frozen'];
type Shape = Pick<
  DecoderSpec,
  'hidden' | 'layers' | 'heads' | 'kvHeads' | 'headDim' | 'intermediate' | 'vocab' | 'tied'
>;

/** What of a run decides its memory. */
export interface MemoryNeed {
  readonly frozen: Frozen;
  readonly recompute: boolean;
  /** Rows of the longest pass: prompt, target and rollout. */
  readonly rows: number;
  /** Rows with losses: target and rollout. */
  readonly scored: number;
  /** Graphs that only go forward beside the one that is trained through: the judge's, and that of rollouts. */
  readonly forwardGraphs: number;
  /** Rows of the longest pass of these: with a teacher, the prompt with its chunks as text, and the target. */
  readonly forwardRows?: number;
  /** Whether the teacher's distribution over the vocabulary goes into the losses. */
  readonly teaches?: boolean;
  /** Sequences that decode together; 0 without rollouts. */
  readonly slots: number;
  /** Processes that make passes; 1 where not given. */
  readonly workers?: number | undefined;
}

/** Bytes of the weights, as graphs have them. */
function weightBytes({ hidden, layers, heads, kvHeads, headDim, intermediate, vocab, tied }: Shape, frozen: Frozen) {
  const attention = 2 * hidden * headDim * (heads + kvHeads);
  const inLayers = layers * (attention + 3 * hidden * intermediate);
  const inVocabulary = (tied ? 1 : 2) * hidden * vocab;
  const packs = frozen === 'w8a8';
  return {
    // All graphs of a run map one file, in which equal weights lie once. With w8a8 each direction has its own.
    mapped: MAPPED[frozen] * inLayers + FLOAT * inVocabulary,
    /** What a session with w8a8 packs, to multiply by it, for each direction. */
    packed: (directions: number) => (packs ? directions * (PACKED * inLayers + FLOAT * hidden * vocab) : 0),
    /** Two matrices of the MLP may lie widened at a time. */
    widened: frozen === 'fp16' || frozen === 'int8' ? 2 * FLOAT * hidden * intermediate : 0,
  };
}

/** Activations of a layer: gate, up and their product; norms, queries, keys, values and the residual stream. */
const layerBytes = ({ intermediate, hidden }: Shape, rows: number) => FLOAT * rows * (3 * intermediate + 8 * hidden);
const decodingBytes = (spec: Shape, slots: number, rows: number) =>
  slots * (rows * positionBytes(spec) + FLOAT * spec.vocab);

/** Bytes at the peak of a run. */
export function trainingBytes(spec: Shape, need: MemoryNeed): number {
  const { hidden, layers, heads, vocab } = spec;
  const { frozen, recompute, rows, scored, forwardGraphs, forwardRows = 0, teaches, slots, workers = 1 } = need;
  const { mapped, packed, widened } = weightBytes(spec, frozen);
  const ofLayer = layerBytes(spec, rows);
  const kept = recompute ? ofLayer + layers * FLOAT * rows * 2 * hidden : layers * ofLayer;
  const scores = SCORES * FLOAT * heads * rows * rows; // of one layer at a time
  const losses = (teaches ? 7 : 3) * FLOAT * scored * vocab;
  const ofPass = packed(2) + widened + kept + scores + losses;
  // A session keeps what its passes took. Forward, one layer is there at a time.
  const ofForward = packed(1) + widened + layerBytes(spec, forwardRows);
  const processes = PROCESS * (workers === 1 ? 1 : workers + 1);
  return processes + mapped + workers * ofPass + forwardGraphs * ofForward + decodingBytes(spec, slots, rows);
}

/**
 * The fastest way to stay within the memory.
 * @param limit bytes; undefined for no limit
 * @throws ServingError config_invalid where there is none, with what it would take.
 */
export function withinMemory(
  spec: Shape,
  need: Omit<MemoryNeed, 'slots'>,
  limit: number | undefined,
): Pick<MemoryNeed, 'recompute' | 'slots'> {
  const most = need.forwardGraphs === 0 ? 0 : ROLLOUT_SLOTS;
  if (limit === undefined) return { recompute: need.recompute, slots: most };
  for (const recompute of need.recompute ? [true] : [false, true]) {
    for (let slots = most; ; slots >>= 1) {
      if (trainingBytes(spec, { ...need, recompute, slots }) <= FILLED * limit) return { recompute, slots };
      if (slots <= 1) break;
    }
  }
  const least = trainingBytes(spec, { ...need, recompute: true, slots: Math.min(most, 1) }) / FILLED;
  throw new ServingError(
    'config_invalid',
    `--memory of ${sizeText(limit)}: this run takes ${sizeText(least)} at least, with activations computed again: allow more,` +
      ' shorten --prompt-tokens, use fewer --workers, or --frozen int8',
  );
}

/**
 * Prompts with their chunks as text that complete together before the first step, within the memory: the graph that
 * trains is not open yet.
 * @param limit bytes; undefined for no limit
 * @throws ServingError config_invalid where there is not enough for one, with what it would take.
 */
export function completionSlots(
  spec: Shape,
  { frozen, rows, most }: { readonly frozen: Frozen; readonly rows: number; readonly most: number },
  limit: number | undefined,
): number {
  const { mapped, packed, widened } = weightBytes(spec, frozen);
  const fixed = PROCESS + mapped + packed(1) + widened + layerBytes(spec, rows);
  const bytes = (slots: number) => fixed + decodingBytes(spec, slots, rows);
  let slots = most;
  while (limit !== undefined && slots > 1 && bytes(slots) > FILLED * limit) slots >>= 1;
  if (limit === undefined || bytes(slots) <= FILLED * limit) return slots;
  throw new ServingError(
    'config_invalid',
    `--memory of ${sizeText(limit)}: completions for --distill take ${sizeText(bytes(1) / FILLED)} at least: allow more, shorten` +
      ' --text-tokens or --prompt-tokens, or use --frozen int8',
  );
}
