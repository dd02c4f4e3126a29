/**
 * Writes tensors of 32-bit floats as a safetensors file: a length of 8 bytes, a JSON header padded to a multiple of 8
 * bytes, then the tensors back to back. A file is there whole or not at all, whenever the process or the machine ends.
 */
import { randomUUID } from 'node:crypto';
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { endianness } from 'node:os';
import { dirname } from 'node:path';
import { ServingError } from '../../process/errors.ts';
import { atPath } from '../../process/os-errors.ts';

export interface WrittenTensor {
  readonly shape: readonly number[];
  /** Row-major elements. */
  readonly data: Float32Array;
}

/** The name under which the format keeps notes, which no tensor can have. */
const NOTES = '__metadata__';

/**
 * Writes `path`, in place of what was there. The same tensors in the same order give the same bytes.
 * @param notes kept in the header, for people; a reader of tensors does not see them
 * @throws ServingError path_unusable where the file cannot be written: what was there stays; checkpoint_invalid for a
 *   tensor whose data do not fill its shape, or that has the name of the notes.
 */
export async function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, WrittenTensor>,
  notes: Readonly<Record<string, string>> = {},
): Promise<void> {
  const header = headerOf(path, tensors, notes);
  const temporary = `${path}.${randomUUID()}.partial`;
  await atPath(path, async () => {
    try {
      const file = await open(temporary, 'wx');
      try {
        await writeAll(file, header);
        for (const { data } of tensors.values()) await writeAll(file, littleEndian(data));
        await file.sync(); // else a power failure could leave the new name with an empty file
      } finally {
        await file.close();
      }
      await rename(temporary, path);
    } catch (error) {
      await rm(temporary, { force: true }).catch(() => {});
      throw error;
    }
    await syncFolder(dirname(path));
  });
}

function headerOf(
  path: string,
  tensors: ReadonlyMap<string, WrittenTensor>,
  notes: Readonly<Record<string, string>>,
): Uint8Array {
  const invalid = (name: string, what: string) =>
    new ServingError('checkpoint_invalid', `${path}: tensor ${JSON.stringify(name)}: ${what}`);
  const entries: [string, unknown][] = Object.keys(notes).length > 0 ? [[NOTES, notes]] : [];
  let end = 0;
  for (const [name, { shape, data }] of tensors) {
    if (name === NOTES) throw invalid(name, 'this name belongs to the notes of the file: rename the tensor');
    const begin = end;
    if (shape.reduce((product, size) => product * size, 1) !== data.length) {
      throw invalid(name, `${data.length} values do not fill the shape [${shape}]`);
    }
    end += data.byteLength;
    entries.push([name, { dtype: 'F32', shape, data_offsets: [begin, end] }]);
  }
  // Object.fromEntries defines keys, also `__proto__`, where an assignment would set the prototype.
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const bytes = new Uint8Array(8 + Math.ceil(json.length / 8) * 8).fill(0x20); // spaces
  new DataView(bytes.buffer).setBigUint64(0, BigInt(bytes.length - 8), true);
  bytes.set(json, 8);
  return bytes;
}

function littleEndian(data: Float32Array): Uint8Array {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return endianness() === 'LE' ? bytes : Buffer.from(bytes).swap32();
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done);
    done += bytesWritten;
  }
}

/** The rename itself must be on the disk. Windows cannot open folders and needs no such step. */
async function syncFolder(dir: string): Promise<void> {
  if (process.platform === 'win32') return;
  await using folder = await open(dir, 'r');
  await folder.sync();
}
