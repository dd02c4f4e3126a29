/** The files of a working tree that are worth indexing, and why the others are not. */
import { constants } from 'node:fs';
import { open, readdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { isGitIgnored } from 'globby';
import { ServingError } from '../lib/process/errors.ts';

export const SKIP_REASONS = ['symlink', 'oversize', 'binary', 'invalid_utf8', 'unreadable'] as const;
export type SkipReason = (typeof SKIP_REASONS)[number];
export type SkipCounts = Record<SkipReason, number>;

export type Source = { readonly text: string } | { readonly skipped: SkipReason };

/** Not of the repository itself, whatever its .gitignore says. */
const DEPENDENCIES = 'node_modules';

export interface Listing {
  /** Regular files and symbolic links, relative to the root, with forward slashes, in the order of their UTF-16 units. */
  readonly paths: string[];
  /** Folders that may not be read. */
  readonly unreadable: number;
}

/**
 * What lies under `dir`. Left out: what .gitignore excludes, and dot files and folders, which hold settings and secrets
 * rather than code. Links are not walked into: what lies inside the tree is found there, and what lies outside is not of
 * the repository. (A walk of our own: glob matchers lose names that hold a line break.)
 * @throws ServingError invalid_request where `dir` is no readable directory.
 */
export async function listSources(dir: string): Promise<Listing> {
  const root = resolve(dir);
  await readdir(root).catch((cause: Error) => {
    throw new ServingError('invalid_request', `cannot index ${dir}: ${cause.message}`, { param: 'path', cause });
  });
  const isIgnored = await isGitIgnored({ cwd: root, ignore: [`**/${DEPENDENCIES}/**`], suppressErrors: true });
  const paths: string[] = [];
  let unreadable = 0;
  const folders = [''];
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    const entries = await readdir(join(root, folder), { withFileTypes: true }).catch(() => undefined);
    if (!entries) unreadable++;
    for (const entry of entries ?? []) {
      if (entry.name.startsWith('.') || entry.name === DEPENDENCIES) continue;
      const path = `${folder}${entry.name}`;
      const isFolder = entry.isDirectory();
      if (isIgnored(`${root}/${path}${isFolder ? '/' : ''}`)) continue;
      if (isFolder) folders.push(`${path}/`);
      else if (entry.isFile() || entry.isSymbolicLink()) paths.push(path);
    }
  }
  return { paths: paths.sort(), unreadable };
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
