/** KV of prompts in a folder of the test's own, around an engine without a model. */
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { formOf } from '../../services/lib/kv/disk/extent.ts';
import { KvDisk } from '../../services/lib/kv/disk/kv-disk.ts';
import { KvFolder } from '../../services/lib/kv/disk/kv-folder.ts';
import { BLOCK_TOKENS, chainOf, type PromptChain } from '../../services/lib/kv/prefix.ts';
import type { WireType } from '../../services/lib/kv/wire.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { NO_SOFT_TOKENS, type TokenPrompt } from '../../services/lib/request/token-prompt.ts';
import { type FakeEngine, GARBAGE, tokensOf } from './fake-engine.ts';

export const SILENT = createLogger('test', 'silent');
/** Reading is always quicker than so few tokens per second. */
export const SLOW_ENGINE = 0.01;

export interface FolderOptions {
  readonly maxBytes?: number;
  readonly type?: WireType;
  readonly fingerprint?: string;
}

/** A folder that does not exist yet, in one that is removed when `use` has ended. */
export async function withFolder<T>(use: (dir: string) => Promise<T>): Promise<T> {
  const parent = await mkdtemp(join(tmpdir(), 'llavacode-kv-'));
  try {
    return await use(join(parent, 'kv'));
  } finally {
    await rm(parent, { recursive: true, force: true });
  }
}

export const openFolder = (engine: FakeEngine, dir: string, options: FolderOptions = {}) => {
  const { maxBytes = 1 << 30, type = 'float32', fingerprint = 'f' } = options;
  const form = formOf({ fingerprint, computedBy: 'a test' }, engine.pool.layout, type);
  return KvFolder.open(dir, form, maxBytes, SILENT);
};

export const openDisk = async (engine: FakeEngine, dir: string, options: FolderOptions = {}) =>
  new KvDisk(engine.pool, await openFolder(engine, dir, options), SILENT);

export const promptOf = (ids: readonly number[], soft = NO_SOFT_TOKENS): TokenPrompt => ({
  ids: Int32Array.from(ids),
  soft,
});

/** Saves the whole blocks of a prompt, by way of slot 0. @returns how many are on disk. */
export async function saveAll(engine: FakeEngine, disk: KvDisk, prompt: TokenPrompt, tenant = ''): Promise<number> {
  const chain = chainOf(prompt, tenant);
  engine.write(0, 0, tokensOf(prompt));
  let done = 0;
  while (done < chain.length) {
    const { blocks } = await disk.save({ slot: 0, chain, tenant }, done, chain.length, () => true);
    if (blocks === done) break;
    done = blocks;
  }
  await disk.used(chain);
  return done;
}

/**
 * Reads as much of a prompt into slot 1 as is on disk, behind `has` blocks that are there.
 * @returns the blocks that the slot then holds. Throws if they are not the prompt's.
 */
export async function restoreAll(
  engine: FakeEngine,
  disk: KvDisk,
  prompt: TokenPrompt,
  { tenant = '', has = 0 }: { readonly tenant?: string; readonly has?: number } = {},
): Promise<number> {
  const chain: PromptChain = chainOf(prompt, tenant);
  const tokens = tokensOf(prompt);
  engine.write(1, 0, new Array(engine.pool.capacity).fill(GARBAGE));
  engine.write(1, 0, tokens.slice(0, has * BLOCK_TOKENS));
  const found = disk.restorable(chain, has, chain.length, SLOW_ENGINE);
  if (found === undefined) return has;
  const blocks = await disk.restore(1, has, found, new AbortController().signal);
  const held = engine.read(1, blocks * BLOCK_TOKENS);
  if (held.some((token, i) => token !== tokens[i])) throw new Error(`the slot does not hold ${blocks} blocks of it`);
  return blocks;
}

/** Bytes of the extents in a folder. */
export async function bytesIn(dir: string): Promise<number> {
  const names = (await readdir(dir)).filter((name) => name.endsWith('.kv'));
  const sizes = await Promise.all(names.map(async (name) => (await stat(join(dir, name))).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}
