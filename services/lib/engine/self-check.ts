/**
 * Whether a device computes right, tried at the start of every session on one, before a request can come:
 *
 * 1. A pattern is written to the end of every KV tensor and read back. Some providers report no error when the memory
 *    of the device is used up: what is written is lost (WebGPU of ONNX Runtime 1.30).
 * 2. A prompt of 48 tokens and one step are computed on the device and on the CPU, and the distributions compared.
 * 3. The same is done with a short prompt that has soft tokens.
 * 4. The first prompt is computed on the device in two chunks. Runs of fewer than 32 tokens take other kernels than
 *    longer ones, with the same weights and the same rounding, so that a wrong kernel shows even where weights of few
 *    bits make the CPU's distributions differ. (The FlashAttention of ONNX Runtime 1.30 is wrong for runs of 32 tokens
 *    and more on Vulkan devices that have subgroups and are neither NVIDIA's nor Apple's.)
 *
 * The runs also compile the kernels: those for 1 token, for fewer than 32 and for more.
 */
import { type KvLayout, positionBytes, rowCount } from '../kv/layout.ts';
import type { KvPool } from '../kv/pool.ts';
import type { KvStore } from '../kv/store.ts';
import type { Precision } from '../model/bundle/choices.ts';
import { comparePosition } from '../model/bundle/divergence.ts';
import { ServingError } from '../process/errors.ts';
import { sizeText } from '../process/memory.ts';
import { NO_SOFT_TOKENS } from '../request/token-prompt.ts';
import type { DecoderSession } from './session.ts';

/** Tokens of the prompt that is tried. Its KV is in slot 0 after the check. */
export const CHECKED_PROMPT = 48;
/** Positions that a slot must have for the prompt and the step. */
export const CHECKED_POSITIONS = CHECKED_PROMPT + 1;
/** Tokens of the prompt with soft tokens, the places of these, and the positions whose logits are compared. */
const SOFT_PROMPT = 16;
const SOFT_PLACES = [3, 4, 9];
const SOFT_ROWS = [3, 4, 9, SOFT_PROMPT - 1];
/** Rows of what is computed for the comparison: the prompt, the step, the prompt with soft tokens. */
export const CHECKED_ROWS = CHECKED_POSITIONS + SOFT_ROWS.length;
/**
 * A mean over a few rows varies more than that over the prompt: it may be this many times as large. With tiny-coder on
 * lavapipe 1 to 4 rows had up to 5 times the KL divergence of the prompt (int4: 3.8e-4 and 7.4e-5), which is a fortieth
 * of the limit. A device that ignores soft tokens has 3 nats.
 */
export const FEW_ROWS = 4;

/** The part of a decoder that the check drives; it computes in slot 0. */
export type CheckedDecoder = Pick<DecoderSession, 'chunk' | 'step' | 'vocabSize' | 'hiddenSize'>;

/** The parts of a decoder and of its pool that another check drives (chunk-check.ts, step-check.ts). */
export type DrivenDecoder<Decoder extends keyof DecoderSession, Pool extends keyof KvPool> = Pick<
  DecoderSession,
  Decoder | 'vocabSize'
> & { readonly pool: Pick<KvPool, Pool | 'store'> };

/** Memory of KV caches with the slot that a device may have besides. */
export type CheckedKv = Pick<KvStore, 'layout' | 'slots' | 'capacity' | 'read' | 'write'> & {
  readonly staging: number | undefined;
};

/** Figures of a device that passed. */
export interface SelfCheck {
  /** Mean KL divergence, in nats, of the device's distributions from the CPU's. */
  readonly kl: number;
  /** The same, of the prompt in one run from the prompt in two. */
  readonly chunkedKl: number;
}

/**
 * Largest mean KL divergence from the CPU that passes, by the precision of the weights. Each but that of fp32 is about
 * ten times what lavapipe, seen as NVIDIA's, measured with tiny-coder: fp32 4.0e-9, fp16 5.4e-5, int8 5.4e-4, int4
 * 6.7e-4 with blocks of 128 weights and 1.4e-3 with 32. For quantised weights most of it is not the device's: the CPU
 * rounds activations to 8 bits, which a GPU does not. With the wrong FlashAttention it was 4.7e-3 in fp32 and 4.9e-3 in
 * fp16, and 6.4e-3 in int4, which only the prompt in two chunks shows.
 *
 * All of this is one model of six layers. Activations of large models have outliers, which rounding to 8 bits hurts
 * more, and a model without large weights to measure is not there; hence --check-tolerance. A reference in 32-bit
 * activations would not be fairer: WebGPU also rounds them to 8 bits, where the shape of a matrix suits its kernel.
 */
export const KL_LIMIT: Readonly<Record<Precision, number>> = {
  fp32: 1e-6,
  fp16: 5e-4,
  int8: 5e-3,
  'int8-fp16': 5e-3,
  mixed: 1.5e-2,
  int4: 1.5e-2,
  'int4-fp16': 1.5e-2,
};

/**
 * The same for a prompt in one run against two, where only the rounding of other kernels differs: 1.9e-12 in fp32 and
 * 9.7e-4 in int4-fp16, on the same device. With the wrong FlashAttention it was 6.4e-3 in int4.
 */
const CHUNKED_LIMIT = 2e-3;

/** The largest divergences that pass. */
export interface CheckLimits {
  readonly precision: Precision;
  readonly kl: number;
  readonly chunkedKl: number;
}

/** @param tolerance factor on both limits: --check-tolerance. */
export const limitsOf = (precision: Precision, tolerance: number): CheckLimits => ({
  precision,
  kl: KL_LIMIT[precision] * tolerance,
  chunkedKl: CHUNKED_LIMIT * tolerance,
});

const lastOf = (kv: CheckedKv) => (kv.staging ?? kv.slots - 1) + 1;

/**
 * Writes to the last position of every slot a pattern of its own, and then reads all back.
 * @throws ServingError out_of_memory, with the arithmetic, for a tensor that does not keep what it is given, or that is
 *   too large for the device's kernels to reach.
 */
export async function assertKeepsKv(kv: CheckedKv, device: string): Promise<void> {
  try {
    await assertKeepsPatterns(kv, device);
  } catch (error) {
    // WebGPU makes tensors of any size without an error; a run on one that takes too many bindings fails.
    if (!(error instanceof ServingError) || error.code !== 'runtime_failed') throw error;
    throw tooLarge(kv, `${device} cannot reach what lies in its KV caches (${error.message.trim()})`, error);
  }
}

async function assertKeepsPatterns(kv: CheckedKv, device: string): Promise<void> {
  const range = { start: kv.capacity - 1, end: kv.capacity, rowStart: 0, rowEnd: rowCount(kv.layout) };
  const slots = lastOf(kv);
  for (let slot = 0; slot < slots; slot++) await kv.write(slot, range, pattern(kv.layout, slot));
  for (let slot = 0; slot < slots; slot++) {
    const wanted = pattern(kv.layout, slot);
    const found = Buffer.concat([...(await kv.read(slot, range))]);
    const at = wanted.findIndex((byte, i) => byte !== found[i]);
    if (at < 0) continue;
    const row = Math.floor((at / wanted.length) * range.rowEnd);
    const lost = `row ${row} at the end of slot ${slot} came back changed`;
    throw tooLarge(kv, `${device} does not keep what is written to its KV caches: ${lost}`);
  }
}

/** @returns ServingError out_of_memory with the arithmetic of the caches. */
function tooLarge(kv: CheckedKv, figures: string, cause?: unknown): ServingError {
  const [slots, per] = [lastOf(kv), positionBytes(kv.layout)];
  return new ServingError(
    'out_of_memory',
    `${figures}. The caches take ${slots} slots x ${kv.capacity} tokens x ${per} bytes = ` +
      `${sizeText(per * kv.capacity * slots)} beside the weights: ` +
      `lower --slots or --capacity, or stop what else uses the device's memory`,
    { cause },
  );
}

/** Bytes for all rows of one position, different for every slot and row. Each value is a number from 1 to 2. */
function pattern(layout: KvLayout, slot: number): Uint8Array {
  const count = rowCount(layout) * layout.headDim;
  const mix = (i: number) => Math.imul(slot * 7919 + i + 1, 2654435761) >>> 9; // 23 bits
  if (layout.type === 'float16') {
    return new Uint8Array(Uint16Array.from({ length: count }, (_, i) => 0x3c00 | (mix(i) >>> 13)).buffer);
  }
  return new Uint8Array(Uint32Array.from({ length: count }, (_, i) => 0x3f800000 | mix(i)).buffer);
}

/** Token ids that look like a prompt: pseudo-random, the same ones everywhere. */
export function promptIds(vocabSize: number, length = CHECKED_PROMPT): Int32Array {
  let state = 1;
  return Int32Array.from({ length }, () => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return state % vocabSize;
  });
}

/** The logits of the prompt, computed in a number of chunks: `[48, vocab]`. */
async function promptLogits(decoder: CheckedDecoder, chunks: number, signal?: AbortSignal): Promise<Float32Array> {
  const { vocabSize } = decoder;
  const ids = promptIds(vocabSize);
  const size = CHECKED_PROMPT / chunks;
  const logits = new Float32Array(CHECKED_PROMPT * vocabSize);
  for (let past = 0; past < CHECKED_PROMPT; past += size) {
    const chunk = { slot: 0, past, ids: ids.subarray(past, past + size), soft: NO_SOFT_TOKENS };
    logits.set(await decoder.chunk({ ...chunk, logitRows: [...Array(size).keys()] }, signal), past * vocabSize);
  }
  return logits;
}

/** The logits of {@link SOFT_ROWS} of a prompt with soft tokens, whose vectors are about as long as embeddings. */
function softLogits(decoder: CheckedDecoder, signal?: AbortSignal): Promise<Float32Array> {
  const { vocabSize, hiddenSize } = decoder;
  const vectors = Float32Array.from({ length: SOFT_PLACES.length * hiddenSize }, (_, i) => Math.sin(i * i) / 32);
  const soft = { positions: Int32Array.from(SOFT_PLACES), vectors };
  const ids = promptIds(vocabSize, SOFT_PROMPT);
  return decoder.chunk({ slot: 0, past: 0, ids, soft, logitRows: SOFT_ROWS }, signal);
}

/**
 * What a decoder computes for the prompt in one run, for a step after it, and for the prompt with soft tokens:
 * `[48 + 1 + 4, vocab]`.
 */
export async function referenceOf(decoder: CheckedDecoder, signal?: AbortSignal): Promise<Float32Array> {
  const logits = new Float32Array(CHECKED_ROWS * decoder.vocabSize);
  logits.set(await promptLogits(decoder, 1, signal));
  const step = await decoder.step(promptIds(decoder.vocabSize).subarray(0, 1), Int32Array.of(CHECKED_PROMPT));
  logits.set(step, CHECKED_PROMPT * decoder.vocabSize);
  logits.set(await softLogits(decoder, signal), CHECKED_POSITIONS * decoder.vocabSize);
  return logits;
}

/**
 * Compares a device's distributions with the CPU's, and those of one run with those of two.
 * @param reference what {@link referenceOf} gives on the CPU, with the same weights.
 * @param device its name, for errors.
 * @throws ServingError provider_unavailable, with the figure, the limit and the remedy.
 */
export async function assertComputesRight(
  decoder: CheckedDecoder,
  reference: Float32Array,
  limits: CheckLimits,
  device: string,
  signal?: AbortSignal,
): Promise<SelfCheck> {
  const whole = await referenceOf(decoder, signal);
  const plain = CHECKED_POSITIONS * decoder.vocabSize;
  const assertNear = (what: string, from: number, to: number, limit: number) => {
    const kl = divergence(reference.subarray(from, to), whole.subarray(from, to), decoder.vocabSize);
    if (kl <= limit) return kl; // a number that is not finite is not
    throw refusal(
      device,
      `${what} have a KL divergence of ${kl.toExponential(1)} from the CPU's, and at most ` +
        `${limit.toExponential(1)} is right for ${limits.precision}`,
    );
  };
  const kl = assertNear(`a prompt of ${CHECKED_PROMPT} tokens and a step`, 0, plain, limits.kl);
  const softLimit = FEW_ROWS * limits.kl;
  assertNear(`${SOFT_ROWS.length} positions of a prompt with soft tokens`, plain, whole.length, softLimit);
  const chunked = await promptLogits(decoder, 2, signal);
  const chunkedKl = divergence(whole.subarray(0, chunked.length), chunked, decoder.vocabSize);
  if (!(chunkedKl <= limits.chunkedKl)) {
    throw refusal(
      device,
      `a prompt of ${CHECKED_PROMPT} tokens in one run has a KL divergence of ${chunkedKl.toExponential(1)} from ` +
        `the same in two, and at most ${limits.chunkedKl.toExponential(1)} is right`,
    );
  }
  return { kl, chunkedKl };
}

/** @returns ServingError for a device that computes wrong. */
export const refusal = (device: string, figures: string) =>
  new ServingError(
    'provider_unavailable',
    `${device} computes wrong: ${figures}. Its answers would be wrong too: use --provider cpu, a GPU or provider ` +
      'that passes (llavacode devices tries them), or a newer driver. Only if you have seen this model to be ' +
      'answered right here, raise --check-tolerance',
  );

/** Mean over rows of KL(p || q), in nats, of the softmax of two sets of logits `[rows, vocab]`. */
export function divergence(p: Float32Array, q: Float32Array, vocab: number): number {
  let sum = 0;
  for (let at = 0; at < p.length; at += vocab) {
    sum += comparePosition(p.subarray(at, at + vocab), q.subarray(at, at + vocab)).kl;
  }
  return (sum * vocab) / p.length;
}

/** At most `most` of a number of rows, spread evenly, the first and the last one among them. */
export function comparedRows(rows: number, most: number): number[] {
  const count = Math.min(rows, most);
  return Array.from({ length: count }, (_, i) => Math.floor((i * (rows - 1)) / Math.max(1, count - 1)));
}
