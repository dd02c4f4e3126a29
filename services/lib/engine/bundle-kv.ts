/** Opens the KV caches of a bundle on the CPU, with the scales of those that lie in int8. */
import { readFile } from 'node:fs/promises';
import { elementBytes, type KvLayout, rowCount } from '../kv/layout.ts';
import type { Bundle } from '../model/bundle/bundle.ts';
import { ServingError } from '../process/errors.ts';
import { CpuEngineKv, Int8Kv } from './engine-kv.ts';
import { kvLayoutOf } from './kv-layout.ts';

/**
 * @param computesPrompts whether prompts are to be computed there, for which levels need a staging slot.
 * @throws ServingError out_of_memory, with the arithmetic; bundle_invalid for scales that are none.
 */
export async function openCpuKv(
  { manifest, kvScales }: Pick<Bundle, 'manifest' | 'kvScales'>,
  slots: number,
  capacity: number,
  computesPrompts = true,
): Promise<CpuEngineKv> {
  const layout = kvLayoutOf(manifest);
  if (kvScales === undefined) return new CpuEngineKv(layout, slots, capacity);
  return new Int8Kv(layout, await readScales(kvScales, layout), slots, capacity, computesPrompts);
}

/** @throws ServingError bundle_invalid */
async function readScales(path: string, layout: KvLayout): Promise<Float32Array> {
  const bytes = await readFile(path);
  const count = rowCount(layout) * layout.headDim;
  const size = count * elementBytes({ ...layout, type: 'float32' });
  if (bytes.length !== size) {
    throw new ServingError('bundle_invalid', `${path} has ${bytes.length} bytes, and scales of its KV have ${size}`);
  }
  const scales = new Float32Array(new ArrayBuffer(size));
  new Uint8Array(scales.buffer).set(bytes);
  const wrong = scales.findIndex((scale) => !(scale > 0 && Number.isFinite(scale)));
  if (wrong < 0) return scales;
  throw new ServingError('bundle_invalid', `${path}: scale ${wrong} is ${scales[wrong]}, and no positive number`);
}
