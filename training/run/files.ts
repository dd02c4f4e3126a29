/** Small files of a run: there whole or not at all. */
import { open, rename, rm } from 'node:fs/promises';
import { atPath } from '../../services/lib/process/os-errors.ts';

/** Writes a file in place of what was there. A run has one process, so its partial file has one name. */
export async function writeWhole(path: string, content: string | Uint8Array): Promise<void> {
  const temporary = `${path}.partial`;
  await atPath(path, async () => {
    try {
      await using file = await open(temporary, 'w');
      await file.writeFile(content);
      await file.sync();
    } catch (error) {
      await rm(temporary, { force: true }).catch(() => {});
      throw error;
    }
    await rename(temporary, path);
  });
}
