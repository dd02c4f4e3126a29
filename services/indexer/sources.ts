/** The files of a working tree that are worth indexing, and why the others are not. */
import { constants } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { globby } from 'globby';
import { ServingError } from '../lib/process/errors.ts';

export const SKIP_REASONS = ['symlink', 'oversize', 'binary', 'invalid_utf8', 'unreadable'] as const;
export type SkipReason = (typeof SKIP_REASONS)[number];
export type SkipCounts = Record<SkipReason, number>;

export type Source = { readonly text: string } | { readonly skipped: SkipReason };

/** Never source code of the repository itself, whatever its .gitignore says. */
const NEVER = ['**/node_modules/**', '**/.git/**'];

/**
 * Paths of the regular files and symbolic links under `dir`, with forward slashes, in the order of their UTF-16 units.
 * Left out: what .gitignore excludes, and dot files and folders, which hold settings and secrets rather than code. Links
 * are not walked into: what lies inside the tree is found there, and what lies outside is not of the repository.
 * @throws ServingError invalid_request where `dir` is no readable directory.
 */
export async function listSources(dir: string): Promise<string[]> {
  const found = await stat(dir).catch((cause: Error) => {
    throw new ServingError('invalid_request', `cannot index ${dir}: ${cause.message}`, { param: 'path', cause });
  });
  if (!found.isDirectory()) {
    throw new ServingError('invalid_request', `cannot index ${dir}: not a directory`, { param: 'path' });
  }
  const entries = await globby('**', {
    cwd: dir,
    gitignore: true,
    ignore: NEVER,
    followSymbolicLinks: false,
    onlyFiles: false,
    objectMode: true,
    suppressErrors: true,
  });
  return entries
    .filter((entry) => entry.dirent.isFile() || entry.dirent.isSymbolicLink())
    .map((entry) => entry.path)
    .sort((a, b) => (a < b ? -1 : 1));
}

/** Reads one listed file. A file that went, or turned into a link, since it was listed is skipped. */
export async function readSource(dir: string, path: string, maxFileBytes: number): Promise<Source> {
  try {
    await using file = await open(join(dir, path), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const { size } = await file.stat();
    if (size > maxFileBytes) return { skipped: 'oversize' };
    const bytes = await file.readFile();
    // As git and grep tell: text has no NUL.
    if (bytes.includes(0)) return { skipped: 'binary' };
    return { text: new TextDecoder('utf-8', { fatal: true }).decode(bytes) };
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ELOOP') return { skipped: 'symlink' };
    if (code === 'ERR_ENCODING_INVALID_ENCODED_DATA') return { skipped: 'invalid_utf8' };
    return { skipped: 'unreadable' };
  }
}
