/**
 * Files that hold what clients have sent, or what is made of it, are for the user that runs the process alone: 0700 and
 * 0600. A process says so once, at its start, and everything that it and its libraries make follows. What an earlier
 * version left open is narrowed when it is found.
 */
import { constants, type Stats } from 'node:fs';
import { chmod, lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';

/** What the group and all others may do with a file. */
const FOR_OTHERS = 0o077;

/** From here on, files and folders that this process makes are for its user alone. */
export function keepFilesPrivate(): void {
  process.umask(FOR_OTHERS);
}

/** Whether a file or folder (no link) belongs to this user, and nobody else can have written it. */
export function isOwnAlone({ uid, mode }: Pick<Stats, 'uid' | 'mode'>): boolean {
  const isOwn = process.getuid === undefined || uid === process.getuid();
  return isOwn && (mode & FOR_OTHERS) === 0 && (mode & constants.S_IFMT) !== constants.S_IFLNK;
}

interface Narrowed {
  /** Files and folders that others could use until now. */
  readonly narrowed: number;
  /** Paths that others can still use: they belong to another user, who alone may change that. */
  readonly foreign: readonly string[];
}

/**
 * Takes files and folders, with all that is in them, away from others. Links are not followed.
 * @throws the error of the operating system, except for what is not there or belongs to another user.
 */
async function narrow(paths: readonly string[]): Promise<Narrowed> {
  let narrowed = 0;
  const foreign: string[] = [];
  for (const path of paths) {
    const found = await lstat(path).catch(ignoreMissing);
    if (found === undefined || found.isSymbolicLink()) continue;
    if ((found.mode & FOR_OTHERS) !== 0) {
      try {
        await chmod(path, found.mode & 0o700);
        narrowed++;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EPERM') throw error;
        foreign.push(path);
      }
    }
    if (!found.isDirectory()) continue;
    const names = await readdir(path);
    const inside = await narrow(names.map((name) => join(path, name)));
    narrowed += inside.narrowed;
    foreign.push(...inside.foreign);
  }
  return { narrowed, foreign };
}

/**
 * Narrows what this system keeps in a folder, and the folder itself if it holds nothing else: somebody may have named a
 * folder that they use for other things too.
 * @param own names of what the system keeps there.
 */
export async function narrowWithin(dir: string, own: readonly string[]): Promise<Narrowed> {
  const names = await readdir(dir).catch(ignoreMissing);
  if (names === undefined) return { narrowed: 0, foreign: [] };
  if (names.every((name) => own.includes(name))) return narrow([dir]);
  return narrow(own.map((name) => join(dir, name)));
}

/** Says to people what was narrowed; undefined if there is nothing to say. */
export function narrowedInWords(dir: string, { narrowed, foreign }: Narrowed): string | undefined {
  const said = [
    narrowed > 0 &&
      `other users of this machine could use ${narrowed} files and folders of ${dir}; now only this user can`,
    foreign.length > 0 &&
      `other users can use ${foreign.join(', ')}, which another user owns: chmod go= them, or remove them`,
  ];
  return said.filter(Boolean).join('; ') || undefined;
}

function ignoreMissing(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error;
}
