/**
 * Follows a working tree: indexes all of it once, then what changes, when the changes have settled for a moment (an
 * editor writes a file in several steps, git a whole tree).
 */
import { relative, resolve, sep } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type FSWatcher, watch } from 'chokidar';
import { ServingError } from '../lib/process/errors.ts';
import { GITIGNORE } from './gitignore.ts';
import { isHidden } from './selection.ts';
import { listSources } from './sources.ts';

export interface Watching {
  readonly dir: string;
  /** Indexes these files (relative, with forward slashes), or all where none are given. Runs come one after the other. */
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
  /** Until the next attempt after a failure, in ms. */
  readonly retryMs?: number;
}

/** Returns when the signal is aborted. @throws what `index` threw, where another attempt would not help. */
export async function watchTree(watching: Watching): Promise<void> {
  while (!watching.signal.aborted) await watchUntilRulesChange(watching);
}

/** Which files are watched depends on .gitignore: when one changes, all starts anew. */
async function watchUntilRulesChange({ dir, index, onFailure, signal, ...options }: Watching): Promise<void> {
  const { quietMs = 200, retryMs = 1_000 } = options;
  const root = resolve(dir);
  const changes = new Changes(quietMs);
  const { rules } = await listSources(root);
  const watcher = watch(root, {
    ignoreInitial: true,
    followSymlinks: false,
    ignorePermissionErrors: true, // an index run counts what it may not read
    ignored: (path, stats) => {
      const own = relative(root, path).split(sep);
      if (own[0] === '') return false;
      const name = own.at(-1) as string;
      return (
        (isHidden(name) && name !== GITIGNORE) || rules.excludes(own.join('/') + (stats?.isDirectory() ? '/' : ''))
      );
    },
  });
  const stop = () => changes.end();
  signal.addEventListener('abort', stop);
  try {
    await ready(watcher, signal);
    watcher.on('error', (error) => onFailure(ServingError.from(error)));
    watcher.on('all', (event, path) => {
      if (event === 'add' || event === 'change' || event === 'unlink') {
        changes.add(relative(root, path).split(sep).join('/'));
      }
    });
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
    }
  } finally {
    signal.removeEventListener('abort', stop);
    await watcher.close();
  }
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
  #paths = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  #settled = false;
  #ended = false;
  #wake = () => {};

  constructor(quietMs: number) {
    this.#quietMs = quietMs;
  }

  add(path: string): void {
    this.#paths.add(path);
    this.#settled = false;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#settled = true;
      this.#wake();
    }, this.#quietMs);
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#ended = true;
    this.#wake();
  }

  /** Waits until there are some and no more come; none when it was ended. */
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
