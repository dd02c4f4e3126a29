/** KV on a disk that is full before the folder's bound is reached. */
import { readdir, type writeFile } from 'node:fs/promises';
import { expect, test, vi } from 'vitest';
import { formOf } from '../../../services/lib/kv/disk/extent.ts';
import { FakeEngine, LAYOUT } from '../../support/fake-engine.ts';
import { bytesIn, openDisk, promptOf, restoreAll, saveAll, withFolder } from '../../support/kv-on-disk.ts';

/** What the disk says to a file of so many bytes, before it is written. */
const disk = vi.hoisted(() => ({ fits: async (_bytes: number): Promise<boolean> => true }));

vi.mock(import('node:fs/promises'), async (original) => {
  const actual = await original();
  const write = async (...[path, content, options]: Parameters<typeof writeFile>) => {
    if (!Buffer.isBuffer(content) || (await disk.fits(content.length))) return actual.writeFile(path, content, options);
    await actual.writeFile(path, content.subarray(0, 100), options);
    throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
  };
  return { ...actual, writeFile: write as typeof writeFile };
});

test('old files make room for new ones, and no rest of a file is left', () =>
  withFolder(async (dir) => {
    const form = formOf({ fingerprint: 'f', computedBy: 'a test' }, LAYOUT, 'float32');
    const room = 3 * form.fileBytes;
    disk.fits = async (bytes) => (await bytesIn(dir)) + bytes <= room;
    const engine = new FakeEngine(2, 700);
    const kv = await openDisk(engine, dir);
    for (let own = 1; own < 6; own++) {
      const prompt = promptOf(new Array(256).fill(own));
      expect(await saveAll(engine, kv, prompt)).toBe(16);
      expect(await restoreAll(engine, kv, prompt)).toBe(16);
    }
    expect(await bytesIn(dir)).toBe(room);
    expect(await restoreAll(engine, kv, promptOf(new Array(256).fill(1)))).toBe(0);
    // Others fill it wholly: what is there gives way, prompts are not saved, and nothing fails.
    disk.fits = async () => false;
    expect(await saveAll(engine, kv, promptOf(new Array(256).fill(7)))).toBe(0);
    expect((await readdir(dir)).filter((name) => !name.endsWith('.kv'))).toEqual(['folder-id']);
  }));
