/** Which kept prompts are saved to disk, and when. */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import type { KvDisk } from '../../../services/lib/kv/disk/kv-disk.ts';
import { WriteBehind } from '../../../services/lib/kv/disk/write-behind.ts';
import { chainOf, PrefixCache } from '../../../services/lib/kv/prefix.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { FakeEngine } from '../../support/fake-engine.ts';
import {
  type FolderOptions,
  openDisk,
  openFolder,
  promptOf,
  restoreAll,
  SILENT,
  withFolder,
} from '../../support/kv-on-disk.ts';

const NEVER = new AbortController().signal;
const WAIT = { timeout: 50_000 };
const count = (length: number, own = 1) => Array.from({ length }, (_, i) => (i * own + own) % 29);
const unsaved = async () => (await metrics.kvDiskUnsaved.get()).values[0]?.value ?? 0;
/** An engine's slots, kept prompts, and what saves them. */
interface Worker {
  readonly engine: FakeEngine;
  /** The folder on disk. */
  readonly dir: string;
  readonly prefixes: PrefixCache;
  readonly disk: KvDisk;
  readonly behind: WriteBehind;
  /** Puts a prompt into a slot as a worker that computes it does, and keeps it. */
  keep(ids: readonly number[], tenant?: string): void;
  /** Blocks that are on disk. */
  saved(ids: readonly number[], tenant?: string): number;
}

const withWorker = (slots: number, use: (worker: Worker) => Promise<void>, options?: FolderOptions) =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(slots, 700);
    const prefixes = new PrefixCache(engine.pool);
    const disk = await openDisk(engine, dir, options);
    const behind = new WriteBehind(engine.pool, prefixes, disk, SILENT);
    const keep = (ids: readonly number[], tenant = '') => {
      const chain = chainOf(promptOf(ids), tenant);
      const { slot, positions } = prefixes.reserve(chain, ids.length, tenant)!;
      engine.write(slot.index, positions, ids.slice(positions));
      prefixes.add(slot.index, chain, ids.length, tenant);
      prefixes.release(slot);
    };
    const saved = (ids: readonly number[], tenant = '') => disk.savedBlocks(chainOf(promptOf(ids), tenant));
    try {
      await use({ engine, dir, prefixes, disk, behind, keep, saved });
    } finally {
      await behind.stop(AbortSignal.abort());
    }
  });

test('a prompt that nobody uses is saved in the background, and can be read back', () =>
  withWorker(2, async ({ engine, disk, behind, keep, saved }) => {
    behind.start();
    keep(count(600));
    await vi.waitUntil(() => saved(count(600)) === 37, WAIT);
    expect(await restoreAll(engine, disk, promptOf(count(600)))).toBe(37);
  }));

test('what is saved when a worker stops is everything, what was used last first', () =>
  withWorker(3, async ({ behind, keep, saved }) => {
    keep(count(300, 1));
    keep(count(300, 2));
    keep(count(40, 3), 'tenant');
    await behind.stop(NEVER);
    expect([saved(count(300, 1)), saved(count(300, 2)), saved(count(40, 3), 'tenant')]).toEqual([18, 18, 2]);
  }));

test('a worker that has no time left to stop does not wait for the disk', () =>
  withWorker(2, async ({ behind, keep, saved }) => {
    keep(count(300));
    await behind.stop(AbortSignal.abort());
    expect(saved(count(300))).toBe(0);
  }));

test('while somebody types, whole extents that the typing does not change are saved, and no more', () =>
  withWorker(2, async ({ behind, keep, saved }) => {
    const typed = (letters: number) => [...count(560), ...new Array<number>(letters).fill(7)];
    behind.start();
    let letters = 0;
    await vi.waitUntil(() => {
      keep(typed(++letters % 100));
      return saved(typed(0)) === 32;
    }, WAIT);
    expect(saved(typed(0))).toBe(32);
  }));

test('prompts that are kept are saved again when somebody has deleted the folder, or all that is in it', () =>
  withWorker(2, async ({ behind, dir, keep }) => {
    const extents = async () => (await readdir(dir).catch(() => [])).filter((name) => name.endsWith('.kv')).length;
    behind.start();
    keep(count(300));
    await vi.waitUntil(async () => (await extents()) > 0, WAIT);
    await rm(dir, { recursive: true });
    await vi.waitUntil(async () => (await extents()) > 0, WAIT);
    for (const name of await readdir(dir)) await rm(join(dir, name), { force: true });
    await vi.waitUntil(async () => (await extents()) > 0, WAIT);
  }));

test('where no slot is free, the prompt that is the next to go is saved before it is needed', () =>
  withWorker(2, async ({ prefixes, behind, keep, saved }) => {
    keep(count(300, 1));
    keep(count(300, 2));
    const next = prefixes.nextToGo!;
    expect(next.chain).toEqual(chainOf(promptOf(count(300, 1)), ''));
    behind.start();
    await vi.waitUntil(() => saved(count(300, 1)) === 18, WAIT);
    const before = await unsaved();
    keep(count(300, 3)); // takes its slot
    expect(await unsaved()).toBe(before);
  }));

test('a prompt that goes before it is saved is counted', () =>
  withWorker(1, async ({ keep }) => {
    const before = await unsaved();
    keep(count(300, 1));
    keep(count(300, 2));
    expect(await unsaved()).toBe(before + 1);
  }));

test('a folder that is smaller than the kept prompts is written to once, not for ever', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(3, 700);
    const prefixes = new PrefixCache(engine.pool);
    const { form } = await openFolder(engine, dir);
    const disk = await openDisk(engine, dir, { maxBytes: form.fileBytes });
    const behind = new WriteBehind(engine.pool, prefixes, disk, SILENT);
    for (const own of [1, 2, 3]) {
      const chain = chainOf(promptOf(count(300, own)), '');
      const { slot } = prefixes.reserve(chain, 300)!;
      engine.write(slot.index, 0, count(300, own));
      prefixes.add(slot.index, chain, 300);
      prefixes.release(slot);
    }
    const written = async () => (await metrics.kvDiskWritten.get()).values[0]?.value ?? 0;
    const before = await written();
    await behind.stop(NEVER);
    const once = (await written()) - before;
    expect(once).toBeGreaterThan(3 * form.fileBytes);
    await behind.stop(NEVER);
    expect((await written()) - before).toBe(once);
    expect((await readdir(dir)).filter((name) => name.endsWith('.kv'))).toHaveLength(1);
  }));
