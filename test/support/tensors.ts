/** Tensors by name, and checkpoints that differ from others in some of them. */
import { cp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { SafetensorsFile } from '../../services/lib/model/checkpoint/safetensors.ts';
import { writeSafetensors } from '../../services/lib/model/checkpoint/safetensors-writer.ts';

export type NamedTensors = ReadonlyMap<string, { readonly shape: readonly number[]; readonly data: Float32Array }>;

/**
 * A copy of a model's folder with other weights.
 * @param change alters the values of a tensor in place
 * @returns the folder
 */
export async function changedModel(
  from: string,
  to: string,
  change: (name: string, values: Float32Array) => void,
): Promise<string> {
  await cp(from, to, { recursive: true });
  const path = join(to, 'model.safetensors');
  const file = await SafetensorsFile.open(path);
  const tensors = new Map<string, { shape: readonly number[]; data: Float32Array }>();
  for (const [name, { shape }] of file.tensors) {
    const data = (await file.read(name)).slice();
    change(name, data);
    tensors.set(name, { shape, data });
  }
  await file.close();
  await rm(path);
  await writeSafetensors(path, tensors);
  return to;
}
