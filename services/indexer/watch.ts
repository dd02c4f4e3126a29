/**
 * Follows a working tree: indexes all of it once, then what changes, whenever the changes have settled for a moment.
 */
import type { Stats } from 'node:fs';
import { lstat, open, readdir, realpath, stat } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type FSWatcher, watch } from 'chokidar';
import { ServingError } from '../lib/process/errors.ts';
import { GITIGNORE, type IgnoreRules } from './gitignore.ts';
import { ENVIRONMENT_MARKS, isHidden, type Selecting } from './selection.ts';
import { SettledChanges } from './settled-changes.ts';
import { listSources } from './sources.ts';
import { foldersOn, Tree, TreeAway } from './tree.ts';

export interface Watching {
  readonly dir: string;
  /** Which files count: with it the watch leaves out what an index run leaves out. */
  readonly selecting?: Selecting;
  /**
   * Indexes the given files, and all that lies in the given folders (relative, with forward slashes), or everything if
   * none are given. Runs never overlap. It throws TreeAway where the tree cannot be looked at, or holds nothing, unless
   * that may be so.
   * @returns the files and folders that could not be read. They are tried until they can be.
   */
  readonly index: (changed: ReadonlySet<string> | undefined, mayBeEmpty: boolean) => Promise<readonly string[]>;
  /**
   * Told of a run that failed for a reason that may pass (`kind.retryable`) and is tried again, of a tree that is away
   * (TreeAway) and is looked for, and of parts of the tree that cannot be watched any more: changes there are not seen.
   */
  readonly onFailure: (error: ServingError) => void;
  /** Ends the watch. */
  readonly signal: AbortSignal;
  /** Changes have settled when none has come for this long, in ms. */
  readonly quietMs?: number;
  /** Changes wait no longer than this, however many come, in ms. */
  readonly patienceMs?: number;
  /** How often to look for folders that were replaced without a sign, in ms. */
  readonly checkMs?: number;
  /** How often to look whether the root is still there, and whether what was unreadable can be read, in ms. */
  readonly rootCheckMs?: number;
  /** A tree that was away or replaced counts as settled when it has not changed for this long, in ms. */
  readonly settleMs?: number;
  /** A tree that was emptied is indexed as empty when it has stayed so for this long, in ms. */
  readonly emptyMs?: number;
  /** Pause after a failure, in ms. */
  readonly retryMs?: number;
}

/** A tree that changes all the time is indexed after this long nevertheless, in ms. */
const SETTLE_PATIENCE_MS = 60_000;
/** The most unreadable paths that are tried again at each look. */
const MAX_TRIED = 100;

/**
 * Returns when the signal is aborted. While the root is away, was replaced and is still being filled, or is empty where
 * it was not, the index stays as it is.
 * @throws what `index` threw, if another attempt would not help; TreeAway if the root cannot be looked at at the start.
 */
export async function watchTree(watching: Watching): Promise<void> {
  const { signal, onFailure, index } = watching;
  /** The file system of the root when it was indexed last; undefined before that. */
  let device: number | undefined;
  let mayBeEmpty = false;
  const indexAndNote: Watching['index'] = async (changed, empty) => {
    const unreadable = await index(changed, empty);
    device = (await statsOf(watching.dir, ''))?.dev ?? device;
    return unreadable;
  };
  if (!signal.aborted) await Tree.open(watching.dir);
  while (!signal.aborted) {
    let settled = true;
    try {
      settled = await watchUntilOutdated({ ...watching, index: indexAndNote }, mayBeEmpty);
    } catch (error) {
      if (!(error instanceof TreeAway)) throw error;
      onFailure(error);
      settled = false;
    }
    mayBeEmpty = settled ? false : await untilSettled(watching, device);
  }
}

/**
 * Waits until a tree that was away is there, has files, and two looks in a row find the same.
 * @param device the file system on which the tree was indexed last. An empty root on another one is a mount point
 *   whose file system is away, however long it stays so.
 * @returns whether the tree has been empty for so long that it is meant to be.
 */
async function untilSettled(watching: Watching, device: number | undefined): Promise<boolean> {
  const { dir, selecting = {}, signal, settleMs = 1_000, emptyMs = 60_000 } = watching;
  let before: string | undefined;
  let [filledMs, emptyAtMs] = [Infinity, Infinity];
  while (!signal.aborted) {
    const found = await listSources(dir, selecting).catch(() => undefined);
    const nowMs = performance.now();
    const isEmpty = found?.paths.length === 0 && found.unreadable.size === 0;
    const stats = await statsOf(dir, '');
    emptyAtMs = isEmpty ? Math.min(emptyAtMs, nowMs) : Infinity;
    if (isEmpty && stats?.dev === device && nowMs - emptyAtMs >= emptyMs) return true;
    const now = found && !isEmpty && stats ? `${identityOf(stats)}\0${found.paths.join('\0')}` : undefined;
    filledMs = now === undefined ? Infinity : Math.min(filledMs, nowMs);
    if (now !== undefined && (now === before || nowMs - filledMs >= SETTLE_PATIENCE_MS)) return false;
    before = now;
    await delay(settleMs, undefined, { signal }).catch(() => {});
  }
  return false;
}

/** Folders by path, with what identifies each: undefined for a file. */
type SeenFolders = Map<string, string | undefined>;

/**
 * Watches until the set of watched files is out of date. It depends on .gitignore, so everything starts anew when one
 * changes. The same goes for a folder that is replaced by another: the watcher may go on with the old one and would see
 * nothing of what comes later.
 * @returns whether the root is still the same folder.
 */
async function watchUntilOutdated(watching: Watching, mayBeEmpty: boolean): Promise<boolean> {
  const { dir, selecting = {}, onFailure, signal, quietMs = 200, patienceMs = 5_000 } = watching;
  const changes = new SettledChanges(quietMs, patienceMs);
  const listing = await listSources(dir, selecting);
  const root = await realpath(dir); // a link itself would be watched, not what it leads to
  const seen: SeenFolders = new Map();
  for (const folder of listing.folders) {
    const stats = await statsOf(dir, folder);
    if (stats) seen.set(folder, identityOf(stats));
  }
  const unreadable = new Set(listing.unreadable);
  const watcher = startWatcher(root, listing);
  const stopLooking = lookAtTimes(watching, changes, seen, unreadable);
  const stop = () => changes.end();
  signal.addEventListener('abort', stop);
  try {
    await ready(watcher, signal);
    if (signal.aborted) return true;
    watcher.on('error', (error) => onFailure(ServingError.from(error)));
    watcher.on('all', (event, path, stats) => {
      const own = relative(root, path).split(sep).join('/');
      changes.add(own);
      if (event === 'addDir' && stats && !seen.has(own)) seen.set(own, identityOf(stats));
    });
    void stopLooking.check(); // a folder may have been replaced while the watcher got ready
    let todo: ReadonlySet<string> | undefined;
    for (;;) {
      const done = await indexOrRetry(watching, todo, mayBeEmpty && todo === undefined);
      if (done === undefined) return true;
      if (done === 'again') continue;
      for (const path of done) unreadable.add(path);
      todo = await changes.take();
      if (signal.aborted) return true;
      const rootNow = await statsOf(dir, '');
      if (!rootNow || identityOf(rootNow) !== seen.get('')) {
        await Tree.open(dir); // throws if it is away
        return false;
      }
      const names = [...todo].map((path) => path.split('/').at(-1) as string);
      if (names.some((name) => name === GITIGNORE || ENVIRONMENT_MARKS.includes(name))) return true;
      if ([...todo].some((path) => unreadable.has(path))) return true; // it could be read again
      const touched = new Set([...todo].flatMap((path) => [...foldersOn(path), path]));
      if ((await findReplaced(dir, seen, touched)) !== undefined) return true;
    }
  } finally {
    stopLooking.stop();
    stop();
    signal.removeEventListener('abort', stop);
    await watcher.close();
  }
}

/** @returns what could not be read; `again` after a failure that may pass; undefined when the watch is to end. */
async function indexOrRetry(
  { index, onFailure, signal, retryMs = 1_000 }: Watching,
  todo: ReadonlySet<string> | undefined,
  mayBeEmpty: boolean,
): Promise<readonly string[] | 'again' | undefined> {
  try {
    return await index(todo, mayBeEmpty);
  } catch (error) {
    if (signal.aborted) return undefined;
    const failure = ServingError.from(error);
    if (!failure.kind.retryable) throw error;
    onFailure(failure);
    await delay(retryMs, undefined, { signal }).catch(() => {});
    return signal.aborted ? undefined : 'again';
  }
}

/**
 * Looks at times for what gives no sign: a root that is gone or another folder, folders that were replaced, and what
 * was unreadable and can be read again. What is found counts as changed.
 */
function lookAtTimes(
  { dir, selecting = {}, checkMs = 300_000, rootCheckMs = 2_000 }: Watching,
  changes: SettledChanges,
  seen: SeenFolders,
  unreadable: ReadonlySet<string>,
) {
  const check = async () => {
    const listed = await listSources(dir, selecting).catch(() => ({ folders: [] }));
    const folder = await findReplaced(dir, seen, new Set([...seen.keys(), ...listed.folders]));
    if (folder !== undefined) changes.add(folder);
  };
  const checkRoot = async () => {
    const stats = await statsOf(dir, '');
    if (!stats || identityOf(stats) !== seen.get('')) changes.add('');
    else for (const path of [...unreadable].slice(0, MAX_TRIED)) if (await isReadable(dir, path)) changes.add(path);
  };
  const timers = [setInterval(check, checkMs), setInterval(checkRoot, rootCheckMs)];
  return { check, stop: () => timers.forEach(clearInterval) };
}

/** Whether a file or folder that could not be read can be read now, with the rules that lie in it. */
async function isReadable(dir: string, path: string): Promise<boolean> {
  try {
    const absolute = join(dir, path);
    if ((await lstat(absolute)).isDirectory()) {
      const names = await readdir(absolute);
      if (!names.includes(GITIGNORE)) return true;
      await using _ = await open(join(absolute, GITIGNORE));
      return true;
    }
    await using _ = await open(absolute);
    return true;
  } catch {
    return false;
  }
}

/** Starts to watch what an index run would read, and the .gitignore files that decide what that is. */
function startWatcher(
  root: string,
  { rules, dependencies }: { readonly rules: IgnoreRules; readonly dependencies: ReadonlySet<string> },
): FSWatcher {
  return watch(root, {
    ignoreInitial: true,
    followSymlinks: false,
    ignorePermissionErrors: true, // an index run counts what it may not read
    ignored: (path, stats) => {
      const own = relative(root, path).split(sep);
      if (own[0] === '') return false;
      // Links are not followed, and chokidar does not see what takes the place of a link that it knows.
      if (stats?.isSymbolicLink()) return true;
      const name = own.at(-1) as string;
      // A .gitignore counts even if it excludes itself: git reads it wherever it reads the folder.
      if (name === GITIGNORE)
        return own.length > 1 && rules.excludes(`${own.slice(0, -1).join('/').normalize('NFC')}/`);
      if (dependencies.has(own.join('/'))) return true;
      const file = own.join('/').normalize('NFC');
      const folder = `${file}/`;
      // chokidar asks before it knows whether the path is a file or a folder, and again when it knows.
      const meant = stats ? [stats.isDirectory() ? folder : file] : [file, folder];
      return isHidden(name) || meant.every((each) => rules.excludes(each));
    },
  });
}

const statsOf = (dir: string, path: string) =>
  (path === '' ? stat(dir) : lstat(join(dir, path))).catch(() => undefined);

/** Identifies a folder. The number of its inode alone does not: the next folder may be given it at once. */
const identityOf = (stats: Stats) =>
  stats.isDirectory() ? `${stats.dev}:${stats.ino}:${stats.birthtimeMs}` : undefined;

/** The first of the paths at which there is another folder than the one seen there, or a file in the place of one. */
async function findReplaced(dir: string, seen: SeenFolders, paths: Iterable<string>): Promise<string | undefined> {
  for (const path of paths) {
    const stats = await statsOf(dir, path);
    if (stats && identityOf(stats) !== seen.get(path)) return path;
  }
  return undefined;
}

async function ready(watcher: FSWatcher, signal: AbortSignal): Promise<void> {
  let leave = () => {};
  await new Promise<void>((resolve, reject) => {
    leave = resolve;
    watcher.once('ready', resolve).on('error', reject);
    signal.addEventListener('abort', leave, { once: true });
  }).finally(() => signal.removeEventListener('abort', leave));
}
