/**
 * Follows a working tree: indexes all of it once, then what changes, when the changes have settled for a moment (an
 * editor writes a file in several steps, git a whole tree).
 */
import type { Stats } from 'node:fs';
import { lstat, realpath, stat } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type FSWatcher, watch } from 'chokidar';
import { ServingError } from '../lib/process/errors.ts';
import { GITIGNORE } from './gitignore.ts';
import { isHidden } from './selection.ts';
import { foldersOn, listSources } from './sources.ts';

export interface Watching {
  readonly dir: string;
  /**
   * Indexes these files, and all that lies in these folders (relative, with forward slashes), or all where none are given.
   * Runs come one after the other.
   */
  readonly index: (changed?: ReadonlySet<string>) => Promise<unknown>;
  /**
   * Told of a run that failed for a reason that may pass (`kind.retryable`); it is tried again. And of what cannot be watched
   * any more: changes there are not seen.
   */
  readonly onFailure: (error: ServingError) => void;
  /** Ends it. */
  readonly signal: AbortSignal;
  /** Without changes for this long, they have settled, in ms. */
  readonly quietMs?: number;
  /** Changes wait no longer, however many come, in ms. */
  readonly patienceMs?: number;
  /** How often to look for folders that were replaced without a sign, in ms. */
  readonly checkMs?: number;
  /** Until the next attempt after a failure, in ms. */
  readonly retryMs?: number;
}

/** Returns when the signal is aborted. @throws what `index` threw, where another attempt would not help. */
export async function watchTree(watching: Watching): Promise<void> {
  while (!watching.signal.aborted) await watchUntilOutdated(watching);
}

/**
 * Which files are watched depends on .gitignore: when one changes, all starts anew. As it does when a folder is replaced: the
 * watcher may go on with the old one, and sees nothing of what comes later.
 */
async function watchUntilOutdated({ dir, index, onFailure, signal, ...options }: Watching): Promise<void> {
  const { quietMs = 200, patienceMs = 5_000, checkMs = 300_000, retryMs = 1_000 } = options;
  const changes = new Changes(quietMs, patienceMs);
  const { rules, folders } = await listSources(dir);
  const root = await realpath(dir); // of a link, the link alone would be watched
  const seen = new Map<string, string | undefined>();
  for (const folder of folders) {
    const stats = await statsOf(dir, folder);
    if (stats) seen.set(folder, identityOf(stats));
  }
  const watcher = watch(root, {
    ignoreInitial: true,
    followSymlinks: false,
    ignorePermissionErrors: true, // an index run counts what it may not read
    ignored: (path, stats) => {
      const own = relative(root, path).split(sep);
      if (own[0] === '') return false;
      // It is not followed, and where chokidar knows one it does not see what takes its place.
      if (stats?.isSymbolicLink()) return true;
      const name = own.at(-1) as string;
      // Whatever it says of itself: git reads it where it reads the folder.
      if (name === GITIGNORE) return own.length > 1 && rules.excludes(`${own.slice(0, -1).join('/')}/`);
      const [file, folder] = [own.join('/'), `${own.join('/')}/`];
      // Asked before it is known which of them it is, and again when it is.
      const meant = stats ? [stats.isDirectory() ? folder : file] : [file, folder];
      return isHidden(name) || meant.every((each) => rules.excludes(each));
    },
  });
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
    void check(); // whether any was replaced while the watcher got ready
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
      todo = await changes.settled();
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

const statsOf = (dir: string, path: string) =>
  (path === '' ? stat(dir) : lstat(join(dir, path))).catch(() => undefined);

/** Of a folder. An inode's number alone will not do: the next folder may be given it at once. */
const identityOf = (stats: Stats) =>
  stats.isDirectory() ? `${stats.dev}:${stats.ino}:${stats.birthtimeMs}` : undefined;

/** The first of the paths at which there is another folder than was seen there, or a file in the place of one. */
async function findReplaced(
  dir: string,
  seen: ReadonlyMap<string, string | undefined>,
  paths: Iterable<string>,
): Promise<string | undefined> {
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

/** Paths that changed since they were last taken. */
class Changes {
  readonly #quietMs: number;
  readonly #patienceMs: number;
  #firstMs = 0;
  #paths = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  #settled = false;
  #ended = false;
  #wake = () => {};

  constructor(quietMs: number, patienceMs: number) {
    this.#quietMs = quietMs;
    this.#patienceMs = patienceMs;
  }

  add(path: string): void {
    if (this.#ended) return;
    const nowMs = performance.now();
    if (this.#paths.size === 0) this.#firstMs = nowMs;
    this.#paths.add(path);
    const leftMs = this.#firstMs + this.#patienceMs - nowMs;
    if (leftMs <= 0) return;
    this.#settled = false;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(
      () => {
        this.#settled = true;
        this.#wake();
      },
      Math.min(this.#quietMs, leftMs),
    );
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#ended = true;
    this.#wake();
  }

  /** Waits until there are some and no more come, or patience ends; none when it was ended. */
  async settled(): Promise<ReadonlySet<string>> {
    if (!this.#settled && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const paths = this.#paths;
    this.#paths = new Set();
    this.#settled = false;
    return paths;
  }
}
