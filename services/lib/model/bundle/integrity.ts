/**
 * Whether files hold what their digests say. A process reads every file that it serves from before it serves, beside
 * loading it, and looks after it while it serves: weights are mapped, so a byte that changes in the file changes what
 * is computed. Nothing is served under a fingerprint that the files do not have.
 *
 *     DIR/.verified/PATH    stamp and digest of a file that was read: while the stamp is the same, it is not read again
 *
 * A stamp is device, inode, size and times of the last changes. Whoever changes a file can set back its mtime, but not
 * its ctime. A record counts only if this user alone can have written it. It lies beside the files because a worker has
 * no other folder of its own; where that cannot be written, the files are read at every start (1.4 GB/s with SHA
 * instructions, 0.3 GB/s without).
 */
import { createHash, randomUUID } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { lstat, mkdir, open, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Deferred } from '../../async/deferred.ts';
import { repeatUntilAborted } from '../../async/repeat.ts';
import { type ErrorCode, ServingError } from '../../process/errors.ts';
import { reasonOf } from '../../process/os-errors.ts';
import { isOwnAlone } from '../../process/private-files.ts';
import { allFiles, type Bundle, type BundleFile } from './bundle.ts';

export interface VerifyProgress {
  /** The file that is being read, relative to the bundle. */
  readonly path: string;
  /** Bytes read so far, and bytes of all files. */
  readonly done: number;
  readonly total: number;
}

interface VerifyOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: VerifyProgress) => void;
}

/** Bytes that are hashed at a time: 1 MiB takes 0.5 to 3 ms, by whether the CPU has instructions for SHA-256. */
const CHUNK_BYTES = 1024 * 1024;
/** Pause between two looks at the files that a process serves from, in ms. A look costs one stat per file. */
const LOOK_EVERY_MS = 1_000;
/**
 * A file that changed less than this before it was read is not recorded, in ms: another change within the same tick of
 * the file system's clock would leave the same stamp. 2 s is the coarsest clock in use (FAT).
 */
const SETTLED_AFTER_MS = 2_000;
/** How often a file that changes while it is read is read before whatever was read last counts. */
const READS = 3;
const RECORDS = '.verified';

/**
 * Reads every file and compares it with the manifest.
 * @throws ServingError bundle_invalid, which names the first file that differs or cannot be read; the signal's reason.
 */
export async function verifyBundle({ dir, manifest }: Bundle, options: VerifyOptions = {}): Promise<void> {
  const files = allFiles(manifest);
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  let done = 0;
  for (const file of files) {
    const onRead = (bytes: number) => {
      done += bytes;
      options.onProgress?.({ path: file.path, done, total });
    };
    await assertDigest({ dir, file, code: 'bundle_invalid' }, options.signal, onRead);
  }
}

/** A file in a folder, and the code of the error if it differs. */
interface Place {
  readonly dir: string;
  readonly file: BundleFile;
  readonly code: ErrorCode;
}

/** A file that has been verified, and its stamp at that time. */
interface Guarded extends Place {
  readonly stamp: Stamp;
}

/** Is told of what a guard finds. */
interface GuardLog {
  info(fields: object, text: string): void;
  warn(fields: object, text: string): void;
  error(fields: object, text: string): void;
}

export class FileGuard {
  readonly #log: GuardLog;
  readonly #guarded = new Map<string, Guarded>();
  readonly #damaged = new Deferred<never>();
  #verifying: Promise<unknown> = Promise.resolve();

  constructor(log: GuardLog) {
    this.#log = log;
  }

  /** Rejects when a file turns out to differ that {@link serveFrom} was told of: loading need not go on then. */
  get damaged(): Promise<never> {
    return this.#damaged.promise;
  }

  /** Begins to verify files that this process is going to serve from; {@link settled} says when that is done. */
  serveFrom(dir: string, files: readonly BundleFile[]): void {
    const startMs = performance.now();
    const verifying = this.verify(dir, files).then((read) => {
      const ms = Math.round(performance.now() - startMs);
      this.#log.info({ dir, files: files.length, bytes_read: read, ms }, 'files verified');
    });
    verifying.catch((err) => {
      this.#log.error({ err, dir }, 'the files to serve from are damaged');
      this.#damaged.reject(err);
    });
    this.#verifying = Promise.all([this.#verifying, verifying]);
    this.#verifying.catch(() => {});
  }

  /**
   * Verifies files, and looks after them from then on, if all are well.
   * @param code of the error for a file that differs.
   * @returns bytes that had to be read.
   * @throws ServingError
   */
  async verify(dir: string, files: readonly BundleFile[], code: ErrorCode = 'bundle_invalid'): Promise<number> {
    let read = 0;
    const verified: Guarded[] = [];
    for (const file of files) this.#guarded.delete(join(dir, file.path));
    for (const file of files) {
      const place = { dir, file, code };
      const { stamp, wasRead } = await verifiedStamp(place);
      if (wasRead) read += file.bytes;
      verified.push({ ...place, stamp });
    }
    for (const each of verified) this.#guarded.set(join(dir, each.file.path), each);
    return read;
  }

  /**
   * Resolves when all files are verified, and none has changed since: what was loaded from them meanwhile is what their
   * digests say.
   * @throws ServingError
   */
  async settled(): Promise<void> {
    await this.#verifying;
    for (const [path, guarded] of this.#guarded) {
      const now = await stampOf(path).catch(() => undefined);
      if (now?.text === guarded.stamp.text) continue;
      await this.#verifyAgain(path, guarded);
    }
  }

  /**
   * Looks after the files until `signal` is aborted. It never rejects.
   * @param onDamage told of a file that was changed in its place: what this process computes cannot be trusted. A file
   *   that was removed, or replaced by another one, is not damage: this process has the one before.
   */
  async watch(signal: AbortSignal, onDamage: (error: ServingError) => void): Promise<void> {
    await repeatUntilAborted(signal, async () => {
      const looks = [...this.#guarded].map(async ([path, guarded]) => {
        return { path, guarded, now: await stampOf(path).catch(() => undefined) };
      });
      for (const { path, guarded, now } of await Promise.all(looks)) {
        if (signal.aborted || this.#guarded.get(path) !== guarded || now?.text === guarded.stamp.text) continue;
        if (now?.inode !== guarded.stamp.inode) {
          this.#guarded.delete(path);
          this.#log.warn({ path }, 'a file was removed or replaced: this process serves the one before');
          continue;
        }
        try {
          await this.#verifyAgain(path, guarded);
        } catch (error) {
          if (signal.aborted) return undefined;
          this.#log.error({ err: error, path }, 'a file that this process serves from was changed in its place');
          onDamage(ServingError.from(error));
          return undefined;
        }
      }
      return LOOK_EVERY_MS;
    });
  }

  async #verifyAgain(path: string, place: Place): Promise<void> {
    const { stamp } = await verifiedStamp(place);
    this.#guarded.set(path, { ...place, stamp });
  }
}

/** @throws ServingError if the file differs from its digest, or cannot be read. */
async function verifiedStamp(place: Place): Promise<{ stamp: Stamp; wasRead: boolean }> {
  const path = join(place.dir, place.file.path);
  for (let reads = 1; ; reads++) {
    const stamp = await stampOf(path).catch((cause) => {
      throw faulty(place, `cannot be read: ${reasonOf(cause)}`, cause);
    });
    if (await isRecorded(place, stamp)) return { stamp, wasRead: false };
    const isSettled = Date.now() - stamp.changedMs > SETTLED_AFTER_MS;
    await assertDigest(place);
    const after = await stampOf(path).catch(() => undefined);
    if (after?.text === stamp.text) {
      if (isSettled) await record(place, stamp);
      return { stamp, wasRead: true };
    }
    if (reads === READS) return { stamp, wasRead: true };
  }
}

/** @throws ServingError if the file differs from its digest, or cannot be read; the signal's reason. */
async function assertDigest(place: Place, signal?: AbortSignal, onRead?: (bytes: number) => void): Promise<void> {
  const { dir, file } = place;
  signal?.throwIfAborted();
  const hash = createHash('sha256');
  try {
    for await (const chunk of createReadStream(join(dir, file.path), { highWaterMark: CHUNK_BYTES, signal })) {
      hash.update(chunk);
      onRead?.(chunk.length);
    }
  } catch (error) {
    signal?.throwIfAborted();
    throw faulty(place, `cannot be read: ${reasonOf(error)}`, error);
  }
  const found = hash.digest('hex');
  if (found !== file.sha256) throw faulty(place, `is damaged: it has SHA-256 ${found}, not ${file.sha256}`);
}

const faulty = ({ dir, file, code }: Place, what: string, cause?: unknown) =>
  new ServingError(code, `${dir}: ${file.path} ${what}`, { cause });

interface Stamp {
  readonly text: string;
  /** Device and inode: the same file, whatever it holds. */
  readonly inode: string;
  readonly changedMs: number;
}

async function stampOf(path: string): Promise<Stamp> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await stat(path, { bigint: true });
  const inode = `${dev}:${ino}`;
  return { text: `${inode} ${size} ${mtimeNs} ${ctimeNs}`, inode, changedMs: Number(ctimeNs / 1_000_000n) };
}

const recordPath = ({ dir, file }: Place) => join(dir, RECORDS, encodeURIComponent(file.path));
const recordOf = ({ file }: Place, stamp: Stamp) => `${file.sha256} ${stamp.text}\n`;

async function isRecorded(place: Place, stamp: Stamp): Promise<boolean> {
  try {
    await using file = await open(recordPath(place), constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0));
    return isOwnAlone(await file.stat()) && (await file.readFile('utf8')) === recordOf(place, stamp);
  } catch {
    return false;
  }
}

/** Does nothing where it cannot be written: the file is read again at the next start. */
async function record(place: Place, stamp: Stamp): Promise<void> {
  const path = recordPath(place);
  const temporary = `${path}.${randomUUID()}`;
  try {
    const dir = join(place.dir, RECORDS);
    await mkdir(dir, { mode: 0o700 }).catch(() => {});
    if (!isOwnAlone(await lstat(dir))) return;
    await writeFile(temporary, recordOf(place, stamp), { mode: 0o600, flag: 'wx' });
    await rename(temporary, path);
  } catch {
    await rm(temporary, { force: true }).catch(() => {});
  }
}
