/**
 * Bytes of an upload that do not belong in memory: one temporary file without a name. It was unlinked when it was made, so
 * nothing is left behind however the process ends, and no name out of an upload ever reaches the file system.
 */
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ServingError } from '../lib/process/errors.ts';

export interface Extent {
  readonly offset: number;
  readonly length: number;
}

/** @throws ServingError spool_failed: for what libraries throw that read by descriptor as well. */
export function spoolFailed(cause: Error): never {
  throw new ServingError('spool_failed', `the temporary file of an upload: ${cause.message}`, { cause });
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

  /** @throws ServingError spool_failed, where the disk is full, say: nothing that the client could mend. */
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
      if (bytesRead === 0) spoolFailed(new Error('it has lost its end')); // a full disk fails the write already
      done += bytesRead;
    }
    return bytes;
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
