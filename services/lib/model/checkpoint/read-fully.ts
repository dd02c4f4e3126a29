/** Reads a stretch of a checkpoint's file. */
import type { FileHandle } from 'node:fs/promises';
import { ServingError } from '../../process/errors.ts';

/** Bytes per read call, which bound the buffer for 16-bit weights. */
export const READ_BYTES = 16 * 1024 * 1024;

/** Fills `into` from a position of the file. @throws ServingError checkpoint_invalid if the file is too short. */
export async function readFully<A extends Uint8Array>(
  handle: FileHandle,
  file: string,
  into: A,
  position: number,
): Promise<A> {
  for (let done = 0; done < into.length; ) {
    const length = Math.min(into.length - done, READ_BYTES);
    const { bytesRead } = await handle.read(into, done, length, position + done);
    if (bytesRead === 0) {
      throw new ServingError('checkpoint_invalid', `${file}: cut short at byte ${position + done}`);
    }
    done += bytesRead;
  }
  return into;
}
