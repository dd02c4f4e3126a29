/** The repository that a file lies in: the checkout of git around it. */
import { lstat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';

export interface Repository {
  /** Folder of the checkout, which holds `.git`. */
  readonly root: string;
  /** Name of the repository in requests. */
  readonly name: string;
}

/** The nearest folder around a file that holds `.git`; a worktree's and a submodule's `.git` is a file. */
export async function gitRoot(path: string): Promise<string | undefined> {
  for (let folder = dirname(path); ; folder = dirname(folder)) {
    if (basename(folder) !== '.git' && (await exists(join(folder, '.git')))) return folder;
    if (folder === dirname(folder)) return undefined;
  }
}

const exists = (path: string) =>
  lstat(path).then(
    () => true,
    () => false, // also where it cannot be looked at
  );
