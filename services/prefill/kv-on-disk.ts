/** The KV on disk of a worker that computes prompts: opened by its settings, and read before a prompt is computed. */
import { formOf, type KvOrigin } from '../lib/kv/disk/extent.ts';
import { KvDisk } from '../lib/kv/disk/kv-disk.ts';
import { KvFolder } from '../lib/kv/disk/kv-folder.ts';
import type { KvPool } from '../lib/kv/pool.ts';
import { BLOCK_TOKENS, type PrefixSlot, reusable } from '../lib/kv/prefix.ts';
import type { Logger } from '../lib/process/log.ts';
import type { HashedJob } from './prompt-computation.ts';
import type { PrefillConfig } from './settings.ts';

/**
 * Opens the folder of a worker; undefined where it has none.
 * @param origin what computes the worker's KV.
 * @throws ServingError path_unusable or config_invalid.
 */
export async function openKvDisk(
  { kvDiskDir, kvDiskBytes, kvDiskPrecision }: Pick<PrefillConfig, 'kvDiskDir' | 'kvDiskBytes' | 'kvDiskPrecision'>,
  origin: KvOrigin,
  pool: KvPool,
  log: Logger,
): Promise<KvDisk | undefined> {
  if (kvDiskDir === '') return undefined;
  const type = kvDiskPrecision === 'int8' && pool.type === 'float32' ? 'int8' : pool.type;
  const folder = await KvFolder.open(kvDiskDir, formOf(origin, pool.layout, type), kvDiskBytes, log);
  log.info({ dir: kvDiskDir, bytes: folder.bytes, type }, 'KV of kept prompts is kept on disk too');
  const disk = new KvDisk(pool, folder, log);
  await disk.warmUp();
  return disk;
}

/** Blocks of a prompt that are of use: the last token is always computed (see {@link reusable}). */
const usefulBlocks = (promptTokens: number) => Math.ceil((promptTokens - 2) / BLOCK_TOKENS);

/**
 * Tokens of a prompt that need not be computed.
 * @param inMemory those that a slot has.
 * @param rate tokens that are computed per second.
 */
export function cachedTokens(
  disk: KvDisk | undefined,
  { chain, prompt }: Pick<HashedJob, 'chain' | 'prompt'>,
  inMemory: number,
  rate: number,
): number {
  const { length } = prompt.ids;
  const found = disk?.restorable(chain, Math.ceil(inMemory / BLOCK_TOKENS), usefulBlocks(length), rate);
  return found === undefined ? inMemory : reusable(found.blocks, length);
}

/**
 * Reads more of the beginning of a prompt into its slot than is there or could be copied from another slot, where that
 * takes less time than computing it.
 * @param start the slot, which nobody else writes to.
 * @param rate tokens that are computed per second.
 * @returns where to start from now; `start` itself where nothing was read.
 */
export async function restoredStart(
  disk: KvDisk,
  { chain, prompt, signal }: Pick<HashedJob, 'chain' | 'prompt' | 'signal'>,
  start: PrefixSlot,
  rate: number,
): Promise<PrefixSlot> {
  const { length } = prompt.ids;
  const cached = Math.ceil(start.positions / BLOCK_TOKENS);
  const inSlot = start.copyFrom === undefined ? cached : 0;
  const found = disk.restorable(chain, inSlot, usefulBlocks(length), rate);
  if (found === undefined || found.blocks <= cached) return start;
  start.copyFrom?.done();
  const blocks = await disk.restore(start.slot.index, inSlot, found, signal);
  return { slot: start.slot, positions: reusable(blocks, length), copyFrom: undefined };
}
