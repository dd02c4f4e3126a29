/**
 * Follows a working tree: indexes all of it once, then what changes, whenever the changes have settled for a moment.
 */
import type { Stats } from 'node:fs';
import { lstat, realpath, stat } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type FSWatcher, watch } from 'chokidar';
import { ServingError } from '../lib/process/errors.ts';
import { GITIGNORE, type IgnoreRules } from './gitignore.ts';
import { isHidden } from './selection.ts';
import { SettledChanges } from './settled-changes.ts';
import { foldersOn, listSources } from './sources.ts';

export interface Watching {
  readonly dir: string;
  /**
   * Indexes the given files, and all that lies in the given folders (relative, with forward slashes), or everything if
   * none are given. Runs never overlap.
   */
  readonly index: (changed?: ReadonlySet<string>) => Promise<unknown>;
  /**
   * Told of a run that failed for a reason that may pass (`kind.retryable`) and is tried again, and of parts of the
   * tree that cannot be watched any more: changes there are not seen.
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
  /** Pause after a failure, in ms. */
  readonly retryMs?: number;
}

/** Returns when the signal is aborted. @throws what `index` threw, if another attempt would not help. */
export async function watchTree(watching: Watching): Promise<void> {
  while (!watching.signal.aborted) await watchUntilOutdated(watching);
}

/** Folders by path, with what identifies each: undefined for a file. */
type SeenFolders = Map<string, string | undefined>;

/**
 * Watches until the set of watched files is out of date. It depends on .gitignore, so everything starts anew when one
 * changes. The same goes for a folder that is replaced by another: the watcher may go on with the old one and would see
 * nothing of what comes later.
 */
async function watchUntilOutdated({ dir, index, onFailure, signal, ...options }: Watching): Promise<void> {
  const { quietMs = 200, patienceMs = 5_000, checkMs = 300_000, retryMs = 1_000 } = options;
  const changes = new SettledChanges(quietMs, patienceMs);
  const { rules, folders } = await listSources(dir);
  const root = await realpath(dir); // a link itself would be watched, not what it leads to
  const seen: SeenFolders = new Map();
  for (const folder of folders) {
    const stats = await statsOf(dir, folder);
    if (stats) seen.set(folder, identityOf(stats));
  }
  const watcher = startWatcher(root, rules);
  const check = async () => {
    const listed = await listSources(dir).catch(() => ({ folders: [] }));
    const folder = await findReplaced(dir, seen, new Set([...seen.keys(), ...listed.folders]));
    if (folder !== undefined) changes.add(folder);
  };
  const checking = setInterval(check, checkMs);
  const stop = () => changes.end();
  signal.addEventListener('abort', stop);
  try {
    await ready(watcher, signal);
    if (signal.aborted) return;
    watcher.on('error', (error) => onFailure(ServingError.from(error)));
    watcher.on('all', (event, path, stats) => {
      const own = relative(root, path).split(sep).join('/');
      changes.add(own);
      if (event === 'addDir' && stats && !seen.has(own)) seen.set(own, identityOf(stats));
    });
    void check(); // a folder may have been replaced while the watcher got ready
    let todo: ReadonlySet<string> | undefined;
    for (;;) {
      try {
        await index(todo);
      } catch (error) {
        if (signal.aborted) return;
        const failure = ServingError.from(error);
        if (!failure.kind.retryable) throw error;
        onFailure(failure);
        await delay(retryMs, undefined, { signal }).catch(() => {});
        if (signal.aborted) return;
        continue;
      }
      todo = await changes.take();
      if (signal.aborted || [...todo].some((path) => path.split('/').at(-1) === GITIGNORE)) return;
      const touched = new Set([...todo].flatMap((path) => [...foldersOn(path), path]));
      if ((await findReplaced(dir, seen, touched)) !== undefined) return;
    }
  } finally {
    clearInterval(checking);
    stop();
    signal.removeEventListener('abort', stop);
    await watcher.close();
  }
}

/** Starts to watch what an index run would read, and the .gitignore files that decide what that is. */
function startWatcher(root: string, rules: IgnoreRules): FSWatcher {
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
      if (name === GITIGNORE) return own.length > 1 && rules.excludes(`${own.slice(0, -1).join('/')}/`);
      const [file, folder] = [own.join('/'), `${own.join('/')}/`];
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
