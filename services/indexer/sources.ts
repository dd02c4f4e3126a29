/** Lists and reads the files of a working tree: all of them, or those that have changed. */
import { constants } from 'node:fs';
import { lstat, open, readdir, readFile } from 'node:fs/promises';
import { normalisePath } from '../lib/rag/store/path-form.ts';
import { GITIGNORE, IgnoreRules } from './gitignore.ts';
import { type LeftOutBefore, LeftOutNames, type NamedSkip } from './left-out.ts';
import {
  asRules,
  asSource,
  isDependency,
  isEnvironment,
  isHidden,
  type Selecting,
  type SkipCounts,
  type SkipReason,
  type Source,
  sizeLimit,
} from './selection.ts';
import { foldersOn, Tree, TreeAway } from './tree.ts';

/** The files that an index run reads. */
export interface Sources {
  /** In normal form (see path-form.ts), in the order of their UTF-16 units. */
  readonly paths: readonly string[];
  /** Files that were left out before anything was read. */
  readonly skipped: Partial<SkipCounts>;
  /** These files by name, as far as names are kept, and files that `skipped` does not count. */
  readonly leftOut?: LeftOutBefore;
  read(path: string): Promise<Source>;
  /** For a change set: the files whose chunks are replaced. All others stay as they are. */
  readonly replaced?: Pick<ReadonlySet<string>, 'has'>;
  /** The version that the changes were worked out against. Without it any version will do. */
  readonly baseVersion?: string;
  /**
   * Files and folders that are there and could not be read: what the current version has of them stays. The set grows
   * while files are read.
   */
  readonly unreadable?: ReadonlySet<string>;
  /** @throws TreeAway if the tree went away since it was listed: files that were not found may be there after all. */
  readonly assertThere?: () => Promise<void>;
}

interface Listing {
  readonly tree: Tree;
  /** The rules of all .gitignore files in the tree. */
  readonly rules: IgnoreRules;
  /**
   * Regular files and symbolic links as they are spelled on disk, relative to the root, with forward slashes, in the
   * order of their UTF-16 units.
   */
  readonly paths: string[];
  /** Folders that were looked into, from the root ('') down. */
  readonly folders: string[];
  /** Folders with code of others, which were not looked into. */
  readonly dependencies: Set<string>;
  /** Folders that are there and could not be read, or whose .gitignore could not be read. */
  readonly unreadable: Set<string>;
  /** Numbers of names that have no normal form, or are not UTF-8. */
  readonly unnamed: { odd_name: number; invalid_utf8: number };
  /** Files and folders that .gitignore excludes, or whose names begin with a dot. */
  readonly ignored: { count: number; readonly names: LeftOutNames };
}

const composed = (path: string) => path.normalize('NFC');

/** Why a name on disk cannot stand in an index; undefined if it can. */
function unnameable(name: string): 'odd_name' | 'invalid_utf8' | undefined {
  if (name.includes('\ufffd')) return 'invalid_utf8';
  return normalisePath(name) === composed(name) ? undefined : 'odd_name';
}

/** All files of a tree. @throws TreeAway if `dir` is not a readable folder. */
export async function treeSources(dir: string, selecting: Selecting): Promise<Sources> {
  const { tree, paths, unreadable, dependencies, unnamed, ignored } = await listSources(dir, selecting);
  const skipped = { ...unnamed, unreadable: unreadable.size, dependency: dependencies.size };
  const folders = (names: Iterable<string>, reason: SkipReason) =>
    [...names].map((name): NamedSkip => [`${composed(name)}/`, reason]);
  const files = [...ignored.names.files, ...folders(unreadable, 'unreadable'), ...folders(dependencies, 'dependency')];
  const leftOut = { files, counts: { ignored: ignored.count } };
  return { skipped, leftOut, ...readable(tree, paths, unreadable, selecting) };
}

/** The part of sources that reads. @param paths as they are spelled on disk. */
function readable(tree: Tree, paths: Iterable<string>, unreadable: Set<string>, selecting: Selecting) {
  const onDisk = new Map([...paths].map((path) => [composed(path), path]));
  return {
    paths: [...onDisk.keys()].sort(),
    unreadable,
    assertThere: () => tree.assertThere(),
    read: async (path: string): Promise<Source> => {
      const source = await tree.look(onDisk.get(path) ?? path, (file) => readSource(path, file, selecting));
      if (source === 'unreadable') unreadable.add(path);
      return typeof source === 'string' ? { skipped: 'unreadable' } : source;
    },
  };
}

/** Opens for reading without following links: they may lead out of the tree. */
const O_READ = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/**
 * The files of a tree that have changed. The chunks of files that are gone or ignored by now are removed, and so are
 * those of files in a folder that is gone, a link by now, or a dependency.
 * @param changed files in `dir`, and folders, which stand for all that they hold; relative to it, with forward slashes.
 * @throws TreeAway
 */
export async function changedSources(dir: string, changed: Iterable<string>, selecting: Selecting): Promise<Sources> {
  const tree = await Tree.open(dir);
  const rules = new IgnoreRules();
  const known = new Set<string>();
  const noFolders = new Set<string>();
  const folders = new Set<string>();
  const unreadable = new Set<string>();
  const kindOf = async (path: string) => {
    const stats = await tree.look(path, (absolute) => lstat(absolute));
    if (stats === 'unreadable') unreadable.add(composed(path));
    else if (stats === 'gone' || !stats.isDirectory()) noFolders.add(composed(path));
    return typeof stats === 'string' ? undefined : stats;
  };
  const learn = async (folder: string) => {
    if (folder !== '' && !(await kindOf(folder))?.isDirectory()) return;
    const entries = await tree.look(folder, (absolute) => readdir(absolute, { withFileTypes: true }));
    if (entries === 'unreadable' || (await addRules(rules, tree, folder && `${folder}/`)) === 'unreadable') {
      if (folder === '') throw new TreeAway(`cannot index ${dir}: it, or its ${GITIGNORE}, cannot be read`);
      unreadable.add(composed(folder));
    } else if (entries !== 'gone' && folder !== '' && isEnvironment(entries, selecting)) {
      noFolders.add(composed(folder));
    }
  };
  /** Whether only real folders, and no link, lead to the path. Learns their rules on the way. */
  const isInside = async (path: string) => {
    for (const folder of foldersOn(path)) {
      if (!known.has(folder)) {
        known.add(folder);
        await learn(folder);
      }
      if (noFolders.has(composed(folder)) || unreadable.has(composed(folder))) return false;
    }
    return true;
  };
  const asked = new Set([...changed].filter((path) => normalisePath(path) === composed(path)));
  const paths = new Set<string>();
  for (const path of [...asked].sort()) {
    const names = path.split('/');
    if (names.some(isHidden) || names.some((name) => isDependency(name, selecting)) || !(await isInside(path)))
      continue;
    const stats = await kindOf(path);
    if (stats?.isDirectory()) folders.add(composed(path));
    if ((stats?.isFile() || stats?.isSymbolicLink()) && !rules.excludes(composed(path))) paths.add(path);
  }
  const liesIn = (some: ReadonlySet<string>, path: string) => foldersOn(path).some((folder) => some.has(folder));
  const listed = folders.size > 0 ? await listSources(dir, selecting) : undefined;
  for (const path of listed?.paths ?? []) if (liesIn(folders, composed(path))) paths.add(path);
  for (const path of listed?.unreadable ?? []) unreadable.add(path);
  const named = new Set([...asked].map(composed));
  return {
    skipped: { unreadable: unreadable.size },
    ...readable(tree, paths, unreadable, selecting),
    replaced: { has: (path) => named.has(path) || liesIn(folders, path) || liesIn(noFolders, path) },
  };
}

/** What the system says of a .gitignore that git would not read either: a link, a folder, a socket. */
const NOT_RULES: readonly string[] = ['ELOOP', 'EISDIR', 'ENXIO'];

/**
 * Adds the rules of the folder's .gitignore, if it has one.
 * @returns unreadable if there is one that could not be read: nobody knows then what it excludes.
 * @throws ServingError payload_too_large; TreeAway.
 */
async function addRules(rules: IgnoreRules, tree: Tree, folder: string): Promise<'unreadable' | undefined> {
  const bytes = await tree.look(`${folder}${GITIGNORE}`, (file) =>
    readFile(file, { flag: O_READ }).catch((error: NodeJS.ErrnoException) => {
      if (NOT_RULES.includes(error.code ?? '')) return Buffer.alloc(0);
      throw error;
    }),
  );
  if (bytes === 'unreadable') return 'unreadable';
  if (bytes !== 'gone') rules.add(composed(folder), asRules(bytes));
  return undefined;
}

/**
 * Lists what lies under `dir`, except what .gitignore excludes, dependencies, and dot files and folders, which hold
 * settings and secrets rather than code. Links are not followed: what they lead to inside the tree is found in its own
 * place, and what lies outside does not belong to the repository. (The walk is our own because glob matchers lose names
 * with a line break.)
 * @param enough ends the walk when so many files have been found.
 * @throws TreeAway if `dir` is not a readable folder; ServingError payload_too_large for too many rules.
 */
export async function listSources(dir: string, selecting: Selecting = {}, enough = Infinity): Promise<Listing> {
  const tree = await Tree.open(dir);
  const rules = new IgnoreRules();
  const paths: string[] = [];
  const folders: string[] = [];
  const dependencies = new Set<string>();
  const unreadable = new Set<string>();
  const unnamed = { odd_name: 0, invalid_utf8: 0 };
  const ignored = { count: 0, names: new LeftOutNames() };
  const left = [''];
  for (let folder = left.pop(); folder !== undefined && paths.length < enough; folder = left.pop()) {
    const own = folder.slice(0, -1);
    const entries = await tree.look(folder, (absolute) => readdir(absolute, { withFileTypes: true }));
    if (entries === 'gone') continue;
    folders.push(own);
    if (entries !== 'unreadable' && folder !== '' && isEnvironment(entries, selecting)) {
      dependencies.add(own);
      continue;
    }
    const ruled = entries !== 'unreadable' && entries.some(({ name }) => name === GITIGNORE);
    if (entries === 'unreadable' || (ruled && (await addRules(rules, tree, folder)) === 'unreadable')) {
      if (folder === '') throw new TreeAway(`cannot index ${dir}: it, or its ${GITIGNORE}, cannot be read`);
      unreadable.add(composed(own));
      continue;
    }
    for (const entry of entries) {
      const path = `${folder}${entry.name}`;
      const isFolder = entry.isDirectory();
      const name = composed(isFolder ? `${path}/` : path);
      if (isHidden(entry.name) || rules.excludes(name)) {
        ignored.count++;
        ignored.names.add(name, 'ignored');
        continue;
      }
      const odd = unnameable(entry.name);
      if (odd) unnamed[odd]++;
      else if (isFolder && isDependency(entry.name, selecting)) dependencies.add(path);
      else if (isFolder) left.push(`${path}/`);
      else if (entry.isFile() || entry.isSymbolicLink()) paths.push(path);
    }
  }
  return { tree, rules, paths: paths.sort(), folders, dependencies, unreadable, unnamed, ignored };
}

/** Whether a tree has no file that would be indexed, as far as it can be read. @throws TreeAway */
export async function isEmptyTree(dir: string, selecting: Selecting): Promise<boolean> {
  const { paths, unreadable } = await listSources(dir, selecting, 1);
  return paths.length === 0 && unreadable.size === 0;
}

/** Reads one listed file. A file that was turned into a link since it was listed is skipped. */
async function readSource(path: string, absolute: string, selecting: Selecting): Promise<Source> {
  const skipped = (reason: SkipReason) => ({ skipped: reason });
  try {
    await using file = await open(absolute, O_READ);
    const { size } = await file.stat();
    if (size > sizeLimit(path, selecting)) return skipped('oversize');
    return asSource(path, await file.readFile(), selecting);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ELOOP') return skipped('symlink');
    throw error;
  }
}
