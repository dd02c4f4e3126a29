/** The files of a working tree: all of them, or those that have changed. */
import { constants } from 'node:fs';
import { lstat, open, readdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { ServingError } from '../lib/process/errors.ts';
import { GITIGNORE, IgnoreRules } from './gitignore.ts';
import { asSource, isHidden, type SkipCounts, type Source } from './selection.ts';

/** What an index run reads. */
export interface Sources {
  /** Relative to the root, with forward slashes, in the order of their UTF-16 units. */
  readonly paths: readonly string[];
  /** Files that were left out before anything was read. */
  readonly skipped: Partial<SkipCounts>;
  read(path: string): Promise<Source>;
  /** Where these are not the whole repository: the files whose chunks go; all others stay as they are. */
  readonly replaced?: ReadonlySet<string>;
  /** The version that changes were worked out against; any will do where there is none. */
  readonly baseVersion?: string;
}

export interface Listing {
  /** What its .gitignore files exclude. */
  readonly rules: IgnoreRules;
  /** Regular files and symbolic links, relative to the root, with forward slashes, in the order of their UTF-16 units. */
  readonly paths: string[];
  /** Folders that may not be read. */
  readonly unreadable: number;
}

/** @throws ServingError invalid_request where `dir` is no readable directory. */
export async function treeSources(dir: string, maxFileBytes: number): Promise<Sources> {
  const { paths, unreadable } = await listSources(dir);
  return { paths, skipped: { unreadable }, read: (path) => readSource(dir, path, maxFileBytes) };
}

/**
 * The files of a tree that have changed; of those that are gone, or ignored by now, the chunks go.
 * @param changed relative to `dir`, with forward slashes.
 */
export async function changedSources(dir: string, changed: Iterable<string>, maxFileBytes: number): Promise<Sources> {
  const root = resolve(dir);
  const rules = new IgnoreRules();
  const known = new Set<string>();
  const replaced = new Set(changed);
  const paths: string[] = [];
  for (const path of [...replaced].sort()) {
    const parts = path.split('/');
    if (parts.some(isHidden)) continue;
    let folder = '';
    for (const part of parts) {
      if (!known.has(folder)) await addRules(rules, root, folder);
      known.add(folder);
      folder += `${part}/`;
    }
    if (rules.excludes(path)) continue;
    if (await lstat(join(root, path)).catch(() => undefined)) paths.push(path);
  }
  return { paths: paths.sort(), skipped: {}, read: (path) => readSource(dir, path, maxFileBytes), replaced };
}

/** Adds those of the folder's .gitignore, if that is text. @throws ServingError payload_too_large */
async function addRules(rules: IgnoreRules, root: string, folder: string): Promise<void> {
  const source = await readSource(root, `${folder}${GITIGNORE}`, Infinity);
  if ('text' in source) rules.add(folder, source.text);
}

/**
 * What lies under `dir`. Left out: what .gitignore excludes, and dot files and folders, which hold settings and secrets
 * rather than code. Links are not walked into: what lies inside the tree is found there, and what lies outside is not of
 * the repository. (A walk of our own: glob matchers lose names that hold a line break.)
 * @throws ServingError invalid_request where `dir` is no readable directory; payload_too_large for too many rules.
 */
export async function listSources(dir: string): Promise<Listing> {
  const root = resolve(dir);
  await readdir(root).catch((cause: Error) => {
    throw new ServingError('invalid_request', `cannot index ${dir}: ${cause.message}`, { param: 'path', cause });
  });
  const rules = new IgnoreRules();
  const paths: string[] = [];
  let unreadable = 0;
  const folders = [''];
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    const entries = await readdir(join(root, folder), { withFileTypes: true }).catch(() => undefined);
    if (!entries) unreadable++;
    if (entries?.some(({ name }) => name === GITIGNORE)) await addRules(rules, root, folder);
    for (const entry of entries ?? []) {
      if (isHidden(entry.name)) continue;
      const path = `${folder}${entry.name}`;
      const isFolder = entry.isDirectory();
      if (rules.excludes(isFolder ? `${path}/` : path)) continue;
      if (isFolder) folders.push(`${path}/`);
      else if (entry.isFile() || entry.isSymbolicLink()) paths.push(path);
    }
  }
  return { rules, paths: paths.sort(), unreadable };
}

/** Reads one listed file. A file that went, or turned into a link, since it was listed is skipped. */
export async function readSource(dir: string, path: string, maxFileBytes: number): Promise<Source> {
  try {
    await using file = await open(join(dir, path), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const { size } = await file.stat();
    if (size > maxFileBytes) return { skipped: 'oversize' };
    return asSource(path, await file.readFile(), maxFileBytes);
  } catch (error) {
    return { skipped: (error as NodeJS.ErrnoException).code === 'ELOOP' ? 'symlink' : 'unreadable' };
  }
}
