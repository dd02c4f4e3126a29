/** A trained projector as `llavacode export --projector` reads it: a folder with tensors and the encoder's settings. */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { writeSafetensors } from '../../services/lib/model/checkpoint/safetensors-writer.ts';
import { atPath, makeFolder } from '../../services/lib/process/os-errors.ts';
import type { Embeddings } from '../data/embeddings.ts';
import type { Tensors } from '../step/tensors.ts';
import { writable } from './checkpoints.ts';
import { writeWhole } from './files.ts';

/** @throws ServingError path_unusable */
export async function writeProjector(
  folder: string,
  parameters: Tensors,
  shapes: ReadonlyMap<string, readonly number[]>,
  { architecture, layers, softPerChunk, ...settings }: Embeddings['settings'],
): Promise<void> {
  await makeFolder(folder);
  await atPath(folder, async () => {
    // A process that was killed may have left a part of one. A run has one process at a time.
    const parts = (await readdir(folder)).filter((name) => name.endsWith('.partial'));
    for (const name of parts) await rm(join(folder, name), { force: true });
  });
  await writeSafetensors(join(folder, 'model.safetensors'), writable(parameters, shapes));
  const { pooling, maxTokens, addSpecialTokens, recipe, modality, normalize } = settings;
  const read = { pooling, max_tokens: maxTokens, add_special_tokens: addSpecialTokens, recipe, modality, normalize };
  const encoder = { architecture, layers, ...read, ...(softPerChunk && { soft_per_chunk: softPerChunk }) };
  await writeWhole(join(folder, 'config.json'), `${JSON.stringify({ encoder }, null, 2)}\n`);
}
