/**
 * Keeps the bytes of an upload out of memory, in one temporary file without a name. The file is unlinked as soon as it
 * is made, so nothing is left behind however the process ends, and no name in an upload ever reaches the file system.
 */
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ServingError } from '../lib/process/errors.ts';
import { reasonOf } from '../lib/process/os-errors.ts';

/** A stretch of the spool, in bytes. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
}

/** Converts an error of the system, also of libraries that read by descriptor. @throws ServingError spool_failed */
export function spoolFailed(cause: Error): never {
  throw new ServingError('spool_failed', `the temporary file of an upload: ${reasonOf(cause)}`, { cause });
}

export class Spool {
  readonly #file: FileHandle;
  #size = 0;

  private constructor(file: FileHandle) {
    this.#file = file;
  }

  /** @throws ServingError spool_failed */
  static async open(): Promise<Spool> {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-upload-')).catch(spoolFailed);
    try {
      return new Spool(await open(join(dir, 'spool'), 'wx+', 0o600).catch(spoolFailed));
    } finally {
      await rm(dir, { recursive: true, force: true });
    }
  }

  /** For libraries that read files by descriptor. */
  get fd(): number {
    return this.#file.fd;
  }

  get size(): number {
    return this.#size;
  }

  /** @throws ServingError spool_failed, for instance on a full disk: nothing that the client could mend. */
  async append(bytes: Uint8Array): Promise<Extent> {
    const offset = this.#size;
    this.#size += bytes.length;
    for (let done = 0; done < bytes.length; ) {
      done += (await this.#file.write(bytes, done, bytes.length - done, offset + done).catch(spoolFailed)).bytesWritten;
    }
    return { offset, length: bytes.length };
  }

  /** @throws ServingError spool_failed */
  async read({ offset, length }: Extent): Promise<Buffer> {
    const bytes = Buffer.allocUnsafe(length);
    for (let done = 0; done < length; ) {
      const { bytesRead } = await this.#file.read(bytes, done, length - done, offset + done).catch(spoolFailed);
      // A full disk would have failed the write already.
      if (bytesRead === 0) spoolFailed(new Error('it is shorter than what was written'));
      done += bytesRead;
    }
    return bytes;
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
