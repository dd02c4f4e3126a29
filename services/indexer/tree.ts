/**
 * Looking at a working tree, where "it is not there" and "it could not be looked at" are two answers. What is not there
 * is removed from an index; what could not be looked at (a mount that dropped, a folder without permission, a disk that
 * fails) stays as it was indexed last.
 */
import type { Stats } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { ServingError } from '../lib/process/errors.ts';
import { reasonOf } from '../lib/process/os-errors.ts';

/** A tree cannot be looked at now, or holds nothing where its index holds files. */
export class TreeAway extends ServingError {
  constructor(message: string, cause?: unknown) {
    super('invalid_request', message, { param: 'path', cause });
  }
}

/** What the system says of a path at which there is nothing. Every other error says that it could not look. */
const GONE: readonly string[] = ['ENOENT', 'ENOTDIR'];

export type Missing = 'gone' | 'unreadable';

export class Tree {
  /** Absolute path. */
  readonly root: string;
  readonly #dir: string;
  /** The inode alone, since file systems without a time of birth report one that changes with each file. */
  readonly #inode: string;

  private constructor(dir: string, root: string, inode: string) {
    this.#dir = dir;
    this.root = root;
    this.#inode = inode;
  }

  /** @throws TreeAway if `dir` is not a readable folder. */
  static async open(dir: string): Promise<Tree> {
    const root = resolve(dir);
    try {
      const tree = new Tree(dir, root, inodeOf(await stat(root)));
      await readdir(root);
      return tree;
    } catch (cause) {
      throw new TreeAway(`cannot index ${dir}: ${reasonOf(cause)}`, cause);
    }
  }

  /** @throws TreeAway if the root is gone, or another folder has its place. */
  async assertThere(): Promise<void> {
    const stats = await stat(this.root).catch((cause: Error) => {
      throw new TreeAway(`${this.#dir} went away while it was read: ${reasonOf(cause)}`, cause);
    });
    if (inodeOf(stats) !== this.#inode) throw new TreeAway(`${this.#dir} was replaced while it was read`);
  }

  /**
   * Runs `task` with the absolute path of `path`, and tells whether what it asks for is gone or could not be read. A
   * path is gone only if the root is there and the path is missing a second time: the root may have come back between.
   * @throws TreeAway
   */
  async look<T extends object>(path: string, task: (absolute: string) => Promise<T>): Promise<T | Missing> {
    const absolute = join(this.root, path);
    try {
      return await task(absolute);
    } catch (first) {
      await this.assertThere();
      if (!isGone(first)) return 'unreadable';
    }
    try {
      return await task(absolute);
    } catch (second) {
      return isGone(second) ? 'gone' : 'unreadable';
    }
  }
}

const inodeOf = ({ dev, ino }: Stats) => `${dev}:${ino}`;
const isGone = (error: unknown) => GONE.includes((error as NodeJS.ErrnoException).code ?? '');

/** The folders that a path leads through, from the root ('') down. */
export function foldersOn(path: string): string[] {
  const names = path.split('/');
  return names.map((_, depth) => names.slice(0, depth).join('/'));
}

/** Whether some of the paths is this one, or a folder that it lies in. */
export const covers = (paths: ReadonlySet<string>, path: string) =>
  paths.has(path) || (paths.size > 0 && foldersOn(path).some((folder) => paths.has(folder)));
