/** The layout of a bundle's KV caches, without the engine that reads them. */
import type { KvLayout } from '../kv/layout.ts';
import { floatsOf, type Manifest } from '../model/bundle/bundle.ts';

/** The layout of the KV that a bundle's graphs read and write. */
export function kvLayoutOf(manifest: Pick<Manifest, 'llm' | 'precision' | 'kv'>): KvLayout {
  const { layers, kvHeads, headDim } = manifest.llm.spec;
  return { layers, kvHeads, headDim, type: manifest.kv === undefined ? floatsOf(manifest) : 'int8-channel' };
}
