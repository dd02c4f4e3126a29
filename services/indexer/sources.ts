/** Lists and reads the files of a working tree: all of them, or those that have changed. */
import { constants } from 'node:fs';
import { lstat, open, readdir, readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { ServingError } from '../lib/process/errors.ts';
import { GITIGNORE, IgnoreRules } from './gitignore.ts';
import { asRules, asSource, isHidden, type SkipCounts, type Source } from './selection.ts';

/** The files that an index run reads. */
export interface Sources {
  /** Relative to the repository's root, with forward slashes, in the order of their UTF-16 units. */
  readonly paths: readonly string[];
  /** Files that were left out before anything was read. */
  readonly skipped: Partial<SkipCounts>;
  read(path: string): Promise<Source>;
  /** For a change set: the files whose chunks are replaced. All others stay as they are. */
  readonly replaced?: Pick<ReadonlySet<string>, 'has'>;
  /** The version that the changes were worked out against. Without it any version will do. */
  readonly baseVersion?: string;
}

interface Listing {
  /** The rules of all .gitignore files in the tree. */
  readonly rules: IgnoreRules;
  /**
   * Regular files and symbolic links, relative to the root, with forward slashes, in the order of their UTF-16 units.
   */
  readonly paths: string[];
  /** Folders that were looked into, from the root ('') down. */
  readonly folders: string[];
  /** Number of folders that could not be read. */
  readonly unreadable: number;
}

/** All files of a tree. @throws ServingError invalid_request if `dir` is not a readable directory. */
export async function treeSources(dir: string, maxFileBytes: number): Promise<Sources> {
  const { paths, unreadable } = await listSources(dir);
  return { paths, skipped: { unreadable }, read: (path) => readSource(dir, path, maxFileBytes) };
}

/** The folders that a path leads through, from the root ('') down. */
export function foldersOn(path: string): string[] {
  const names = path.split('/');
  return names.map((_, depth) => names.slice(0, depth).join('/'));
}

/** Opens for reading without following links: they may lead out of the tree. */
const O_READ = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/**
 * The files of a tree that have changed. The chunks of files that are gone or ignored by now are removed, and so are
 * those of files in a folder that is gone, or a link by now.
 * @param changed files in `dir`, and folders, which stand for all that they hold; relative to it, with forward slashes.
 */
export async function changedSources(dir: string, changed: Iterable<string>, maxFileBytes: number): Promise<Sources> {
  const root = resolve(dir);
  const rules = new IgnoreRules();
  const known = new Set<string>();
  const noFolders = new Set<string>();
  const folders = new Set<string>();
  const kindOf = async (path: string) => {
    const stats = await lstat(join(root, path)).catch(() => undefined);
    if (!stats?.isDirectory()) noFolders.add(path);
    return stats;
  };
  /** Whether only real folders, and no link, lead to the path. Learns their rules on the way. */
  const isInside = async (path: string) => {
    for (const folder of foldersOn(path)) {
      if (!known.has(folder)) {
        known.add(folder);
        if (folder !== '') await kindOf(folder);
        if (!noFolders.has(folder)) await addRules(rules, root, folder && `${folder}/`);
      }
      if (noFolders.has(folder)) return false;
    }
    return true;
  };
  const asked = new Set(changed);
  const paths = new Set<string>();
  for (const path of [...asked].sort()) {
    if (path === '' || path.split('/').some(isHidden) || !(await isInside(path))) continue;
    const stats = await kindOf(path);
    if (stats?.isDirectory()) folders.add(path);
    if ((stats?.isFile() || stats?.isSymbolicLink()) && !rules.excludes(path)) paths.add(path);
  }
  const liesIn = (some: ReadonlySet<string>, path: string) => foldersOn(path).some((folder) => some.has(folder));
  const listed = folders.size > 0 ? (await listSources(dir)).paths : [];
  for (const path of listed) if (liesIn(folders, path)) paths.add(path);
  return {
    paths: [...paths].sort(),
    skipped: {},
    read: (path) => readSource(dir, path, maxFileBytes),
    replaced: { has: (path) => asked.has(path) || liesIn(folders, path) || liesIn(noFolders, path) },
  };
}

/** Adds the rules of the folder's .gitignore, if it has one. @throws ServingError payload_too_large */
async function addRules(rules: IgnoreRules, root: string, folder: string): Promise<void> {
  const bytes = await readFile(join(root, folder, GITIGNORE), { flag: O_READ }).catch(() => undefined);
  if (bytes) rules.add(folder, asRules(bytes));
}

/**
 * Lists what lies under `dir`, except what .gitignore excludes, and dot files and folders, which hold settings and
 * secrets rather than code. Links are not followed: what they lead to inside the tree is found in its own place, and
 * what lies outside does not belong to the repository. (The walk is our own because glob matchers lose names with a
 * line break.)
 * @throws ServingError invalid_request if `dir` is not a readable directory; payload_too_large for too many rules.
 */
export async function listSources(dir: string): Promise<Listing> {
  const root = resolve(dir);
  await readdir(root).catch((cause: Error) => {
    throw new ServingError('invalid_request', `cannot index ${dir}: ${cause.message}`, { param: 'path', cause });
  });
  const rules = new IgnoreRules();
  const paths: string[] = [];
  const folders: string[] = [];
  let unreadable = 0;
  const left = [''];
  for (let folder = left.pop(); folder !== undefined; folder = left.pop()) {
    folders.push(folder.slice(0, -1));
    const entries = await readdir(join(root, folder), { withFileTypes: true }).catch(() => undefined);
    if (!entries) unreadable++;
    if (entries?.some(({ name }) => name === GITIGNORE)) await addRules(rules, root, folder);
    for (const entry of entries ?? []) {
      if (isHidden(entry.name)) continue;
      const path = `${folder}${entry.name}`;
      const isFolder = entry.isDirectory();
      if (rules.excludes(isFolder ? `${path}/` : path)) continue;
      if (isFolder) left.push(`${path}/`);
      else if (entry.isFile() || entry.isSymbolicLink()) paths.push(path);
    }
  }
  return { rules, paths: paths.sort(), folders, unreadable };
}

/** Reads one listed file. A file that was removed, or turned into a link, since it was listed is skipped. */
async function readSource(dir: string, path: string, maxFileBytes: number): Promise<Source> {
  try {
    await using file = await open(join(dir, path), O_READ);
    const { size } = await file.stat();
    if (size > maxFileBytes) return { skipped: 'oversize' };
    return asSource(path, await file.readFile(), maxFileBytes);
  } catch (error) {
    return { skipped: (error as NodeJS.ErrnoException).code === 'ELOOP' ? 'symlink' : 'unreadable' };
  }
}
