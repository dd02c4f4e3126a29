/**
 * Scales of KV in int8: what a level is worth in each channel of each head, measured on text. They are fixed when a
 * bundle is made, so that what keys and values are rounded to depends only on their token and those before it. A value
 * beyond the largest level becomes the largest level.
 */
import { type KvLayout, rowCount } from '../kv/layout.ts';
import { KvPool } from '../kv/pool.ts';
import type { DecoderSpec } from '../model/checkpoint/spec.ts';
import { floatKvGraph, MOST_LEVEL } from '../model/graph/prompt-graph.ts';
import { ServingError } from '../process/errors.ts';
import { NO_SOFT_TOKENS } from '../request/token-prompt.ts';
import { CpuEngineKv } from './engine-kv.ts';
import type { SessionOptions } from './ort.ts';
import { DecoderSession } from './session.ts';

/** The scale of a channel that is 0 in all of the text: small enough to matter to none. */
const LEAST_SCALE = 1e-6;

/**
 * @param graph path of a decoder graph with int8 KV; it computes with KV of floats here.
 * @param sequences token ids of text, within the model's positions.
 * @returns for each channel `[layers, K or V, kv_heads, head_dim]` its largest amount on the text, by levels.
 * @throws ServingError config_invalid without text, runtime_failed.
 */
export async function measureKvScales(
  graph: string,
  { layers, kvHeads, headDim, vocab, hidden }: DecoderSpec,
  sequences: readonly Int32Array[],
  options: SessionOptions,
): Promise<Float32Array> {
  const longest = Math.max(0, ...sequences.map(({ length }) => length));
  if (longest === 0) throw new ServingError('config_invalid', 'there is no text to measure the scales of KV on');
  const layout: KvLayout = { layers, kvHeads, headDim };
  const memory = new CpuEngineKv(layout, 1, longest);
  const rewrite = (model: Uint8Array) => floatKvGraph(model, layout);
  const shape = { vocabSize: vocab, hiddenSize: hidden };
  const session = await DecoderSession.load(graph, shape, new KvPool(memory), { ...options, rewrite });
  try {
    const scales = new Float32Array(rowCount(layout) * headDim).fill(LEAST_SCALE);
    for (const ids of sequences) {
      await session.chunk({ slot: 0, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows: [] });
      const rows = memory.read(0, { start: 0, end: ids.length, rowStart: 0, rowEnd: rowCount(layout) });
      for (const [row, bytes] of rows.entries()) {
        const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
        raise(scales.subarray(row * headDim, (row + 1) * headDim), values);
      }
    }
    return scales;
  } finally {
    await session.dispose();
  }
}

/** @param scales `[head_dim]`, raised so that the values fit. @param values `[positions, head_dim]`. */
function raise(scales: Float32Array, values: Float32Array): void {
  for (let i = 0; i < values.length; i++) {
    const channel = i % scales.length;
    scales[channel] = Math.max(scales[channel]!, Math.abs(values[i]!) / MOST_LEVEL);
  }
}
