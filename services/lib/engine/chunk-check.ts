/**
 * Whether a device has the memory for the longest chunk of a prompt, at the end of a slot, where attention reads all
 * positions before it. Such a run needs much more memory for its intermediate results than those of self-check.ts, and
 * takes it when it first runs. Where the memory is used up, WebGPU (ONNX Runtime 1.30) loses what is written and
 * reports no error: without this check the first long prompt would get wrong tokens.
 */
import { rowCount } from '../kv/layout.ts';
import { ServingError } from '../process/errors.ts';
import { NO_SOFT_TOKENS } from '../request/token-prompt.ts';
import { type CheckLimits, comparedRows, type DrivenDecoder, divergence, FEW_ROWS, promptIds } from './self-check.ts';

/** The part of a decoder that the check drives; it computes in slot 0. */
export type ChunkDecoder = DrivenDecoder<'chunk', 'capacity' | 'layout'>;

/** Positions whose distributions are compared: few, because those of all would be 300 MB at a vocabulary of 152k. */
const COMPARED = 8;
/** Positions of KV that are copied to later ones at once. */
const PIECE = 512;

/**
 * Computes the longest chunk at the end of a slot at once and in two halves, and compares the distributions. The slot
 * is filled with the KV of the chunk, again and again: with KV like that of a prompt attention spreads as usual.
 * @param tokens of the longest chunk, at least 1.
 * @param device its name, for errors.
 * @throws ServingError out_of_memory, with the figure and the remedy.
 */
export async function assertComputesLongChunks(
  decoder: ChunkDecoder,
  tokens: number,
  limits: CheckLimits,
  device: string,
): Promise<void> {
  const { capacity } = decoder.pool;
  const past = capacity - tokens;
  const ids = promptIds(decoder.vocabSize, tokens);
  const half = tokens >> 1;
  if (half === 0) return; // one token has no halves, and needs no more memory than a step
  const chunk = (from: number, to: number, at = past) => {
    const logitRows = comparedRows(tokens, COMPARED).flatMap((row) => (row >= from && row < to ? [row - from] : []));
    return decoder.chunk({ slot: 0, past: at + from, ids: ids.subarray(from, to), soft: NO_SOFT_TOKENS, logitRows });
  };
  if (past > 0) {
    await chunk(0, tokens, 0);
    await repeatKv(decoder.pool, Math.min(tokens, PIECE), past);
  }
  const whole = await chunk(0, tokens);
  const halves = new Float32Array(whole.length);
  const first = await chunk(0, half);
  halves.set(first);
  halves.set(await chunk(half, tokens), first.length);
  const kl = divergence(whole, halves, decoder.vocabSize);
  // What is lost differs by nats: a mean over few positions may vary more than that over the prompt of the check.
  const limit = FEW_ROWS * limits.chunkedKl;
  // What is lost reads as the same number everywhere, also in both halves; a number that is not finite fails, too.
  if (kl <= limit && !isConstant(whole)) return;
  const figure = isConstant(whole)
    ? 'all its logits are the same'
    : `it has a KL divergence of ${kl.toExponential(1)} from the same in two halves, and at most ${limit.toExponential(1)} is right`;
  throw new ServingError(
    'out_of_memory',
    `${device} computes a chunk of ${tokens} tokens at the end of a slot of ${capacity} wrong: ${figure}. ` +
      'Most likely it has no memory left for the results within the run: lower --prefill-chunk-tokens, --slots ' +
      "or --capacity, or stop what else uses the device's memory",
  );
}

/** Writes the KV of positions [0, count) of slot 0 to the positions after them, up to `end`. */
async function repeatKv({ store, layout }: ChunkDecoder['pool'], count: number, end: number): Promise<void> {
  const rows = { rowStart: 0, rowEnd: rowCount(layout) };
  const kv = await store.read(0, { start: 0, end: count, ...rows });
  for (let start = count; start < end; start += count) {
    const length = Math.min(count, end - start);
    await store.write(0, { start, end: start + length, ...rows }, (index, to) => {
      to.set((kv[index] as Uint8Array).subarray(0, to.length));
    });
  }
}

const isConstant = (logits: Float32Array) => logits.every((logit) => logit === logits[0]);
