/**
 * Errors of the operating system at a path or address that a person gave: said in words, with the value and a remedy.
 * They are mistakes to correct, not bugs to report.
 */
import { mkdir, readFile, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ServingError } from './errors.ts';

const REASONS: Readonly<Record<string, string>> = {
  EACCES: 'this user has no permission for it',
  EPERM: 'the system does not permit that',
  ENOENT: 'it does not exist',
  ENOTDIR: 'a part of it is a file where a folder is needed',
  EISDIR: 'it is a folder where a file is needed',
  EEXIST: 'something else has that name already',
  ENOTEMPTY: 'the folder is not empty',
  EROFS: 'its file system is read-only',
  ENOSPC: 'its disk is full',
  EDQUOT: "the user's disk quota is used up",
  EFBIG: 'it would be larger than a file may be here',
  ENAMETOOLONG: 'a name in it is too long',
  ELOOP: 'it has too many symbolic links',
  EMFILE: 'this process has too many files open',
  ENFILE: 'the system has too many files open',
  EADDRINUSE: 'another process listens there',
  EADDRNOTAVAIL: 'this machine does not have that address',
  ENOTFOUND: 'its name is not known',
  EAI_AGAIN: 'its name could not be looked up now',
  ECONNREFUSED: 'nothing listens there',
  ECONNRESET: 'the connection broke off',
  EPIPE: 'the connection was closed',
  EHOSTUNREACH: 'its machine cannot be reached',
  ENETUNREACH: 'its network cannot be reached',
  ETIMEDOUT: 'it did not answer in time',
};

/** Those that only files have: an open file that is written to gives no path with them. */
const OF_FILES: ReadonlySet<string> = new Set(['EISDIR', 'EROFS', 'ENOSPC', 'EDQUOT', 'EFBIG']);

/**
 * The error in words, where it is one of the operating system; undefined for any other error.
 * @param named what the message begins with, such as `--data /srv`; the error's own path or address when not given.
 */
export function systemError(error: unknown, named?: string): ServingError | undefined {
  if (!(error instanceof Error) || !('code' in error) || !('syscall' in error)) return undefined;
  const { code, path, address, port, hostname } = error as NodeJS.ErrnoException & {
    readonly address?: string;
    readonly port?: number;
    readonly hostname?: string;
  };
  const reason = REASONS[String(code)];
  if (reason === undefined) return undefined;
  const where = named ?? path ?? hostname ?? (address === undefined ? undefined : `${address}:${port}`);
  if (where === undefined) return undefined;
  const isOfFile = path !== undefined || OF_FILES.has(String(code));
  const kind = code === 'EADDRINUSE' ? 'address_in_use' : isOfFile ? 'path_unusable' : 'address_unusable';
  return new ServingError(kind, `${where}: ${reason} (${code})`, { cause: error });
}

/** Why something failed, in words: the system's reason without its call and path, or else the error's own message. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const code = 'code' in error ? String(error.code) : '';
  return REASONS[code] === undefined ? error.message : `${REASONS[code]} (${code})`;
}

/**
 * The failure to listen at an address.
 * @param named the flags that gave the address, with their values.
 */
export function listenError(named: string, cause: unknown): ServingError {
  const { code, message } = cause as NodeJS.ErrnoException;
  const found = code ?? /\bE[A-Z]{4,}\b/.exec(message)?.[0] ?? ''; // grpc-js has the code in its message alone
  const reason = REASONS[found] === undefined ? message : `${REASONS[found]} (${found})`;
  return new ServingError(found === 'EADDRINUSE' ? 'address_in_use' : 'address_unusable', `${named}: ${reason}`, {
    cause,
  });
}

/**
 * Makes a folder and those above it. (Node's own `mkdir` with `recursive` never returns where a parent exists and yet
 * nothing can be made in it, as in /proc.)
 * @throws the error of the operating system.
 */
export async function makeFolder(dir: string): Promise<void> {
  try {
    await mkdir(dir);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' && dirname(dir) !== dir) {
      await makeFolder(dirname(dir));
      await mkdir(dir).catch(ignoreExisting);
    } else if (code !== 'EEXIST' || !(await stat(dir)).isDirectory()) throw error;
  }
}

function ignoreExisting(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EEXIST') throw error;
}

/** Runs `task`, and throws its errors of the operating system as {@link systemError} says them. */
export async function atPath<T>(named: string, task: () => Promise<T>): Promise<T> {
  try {
    return await task();
  } catch (error) {
    throw systemError(error, named) ?? error;
  }
}

/**
 * Reads the file that a setting names.
 * @param flag the setting, such as `--tls-cert`.
 * @throws ServingError config_invalid
 */
export async function readSettingFile(flag: string, path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new ServingError('config_invalid', `${flag} ${path}: ${reasonOf(cause)}`, { cause });
  }
}
