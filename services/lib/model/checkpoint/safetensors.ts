/**
 * Reads one safetensors file: a length of 8 bytes, a JSON header of that many bytes, then the tensors back to back. The
 * whole header is validated before any of it is used. Tensors are read one at a time at their positions, so that a file
 * may be larger than the memory.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { z } from 'zod';
import { widen } from '../../numeric/half.ts';
import { ServingError } from '../../process/errors.ts';
import { READ_BYTES, readFully } from './read-fully.ts';

const BYTES_OF = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
} as const;
type Dtype = keyof typeof BYTES_OF;

interface TensorInfo {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** The first byte, and the byte after the last one, counted from the start of the tensor data. */
  readonly begin: number;
  readonly end: number;
}

/** The format's own limit for the header, in bytes. */
const MAX_HEADER_BYTES = 100_000_000;

const size = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const entrySchema = z.object({
  dtype: z.string().refine((dtype): dtype is Dtype => Object.hasOwn(BYTES_OF, dtype), 'is not a known dtype'),
  shape: z.array(size),
  data_offsets: z.tuple([size, size]),
});

const invalid = (file: string, what: string, cause?: unknown) =>
  new ServingError('checkpoint_invalid', `${file}: ${what}`, { cause });

function parseEntry(file: string, name: string, entry: unknown, dataBytes: number): TensorInfo {
  const parsed = entrySchema.safeParse(entry);
  if (!parsed.success) {
    const why = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`).join('; ');
    throw invalid(file, `tensor ${JSON.stringify(name)}: ${why}`);
  }
  const { dtype, shape, data_offsets } = parsed.data;
  const [begin, end] = data_offsets;
  if (begin > end || end > dataBytes) {
    throw invalid(
      file,
      `tensor ${JSON.stringify(name)}: bytes [${begin}, ${end}) are not within the ${dataBytes} bytes of data: was the file cut short?`,
    );
  }
  const bytes = shape.reduce((product, dim) => product * dim, BYTES_OF[dtype]);
  if (bytes !== end - begin) {
    throw invalid(
      file,
      `tensor ${JSON.stringify(name)}: ${dtype} [${shape}] takes ${bytes} bytes, but its offsets give ${end - begin}`,
    );
  }
  return { dtype, shape, begin, end };
}

/**
 * The tensors that a header describes, by name. They must fill the data without gap or overlap.
 * @param file name for messages.
 * @param dataBytes number of bytes that follow the header.
 * @throws ServingError checkpoint_invalid
 */
export function parseHeader(file: string, header: Uint8Array, dataBytes: number): Map<string, TensorInfo> {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(header));
  } catch (error) {
    throw invalid(file, 'the header is not JSON', error);
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw invalid(file, 'the header is not an object');
  const tensors = new Map<string, TensorInfo>();
  for (const [name, entry] of Object.entries(json)) {
    if (name !== '__metadata__') tensors.set(name, parseEntry(file, name, entry, dataBytes));
  }
  let position = 0;
  for (const [name, { begin, end }] of [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end)) {
    if (begin !== position) {
      const what = begin < position ? 'overlaps the tensor before it' : 'leaves a gap before it';
      throw invalid(file, `tensor ${JSON.stringify(name)}: ${what} (starts at ${begin}, expected ${position})`);
    }
    position = end;
  }
  if (position !== dataBytes)
    throw invalid(file, `${dataBytes - position} bytes after the last tensor belong to no tensor`);
  return tensors;
}

function decode16(dtype: 'F16' | 'BF16', from: Uint16Array, to: Float32Array): void {
  if (dtype === 'F16') widen(from, to);
  else {
    const bits = new Uint32Array(to.buffer, to.byteOffset, to.length);
    for (let i = 0; i < from.length; i++) bits[i] = from[i]! << 16;
  }
}

export class SafetensorsFile {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly path: string;
  readonly #handle: FileHandle;
  /** Position of the tensor data in the file. */
  readonly #dataStart: number;

  private constructor(path: string, handle: FileHandle, tensors: Map<string, TensorInfo>, dataStart: number) {
    this.path = path;
    this.#handle = handle;
    this.tensors = tensors;
    this.#dataStart = dataStart;
  }

  /** @throws ServingError checkpoint_invalid if the file is absent, cut short or inconsistent. */
  static async open(path: string): Promise<SafetensorsFile> {
    const handle = await open(path).catch((error: unknown) => {
      throw invalid(path, 'cannot be opened', error);
    });
    try {
      const { size: fileBytes } = await handle.stat();
      const prefix = await readFully(handle, path, new Uint8Array(8), 0);
      const headerBytes = Number(new DataView(prefix.buffer).getBigUint64(0, true));
      const dataStart = 8 + headerBytes;
      if (headerBytes > MAX_HEADER_BYTES) {
        throw invalid(path, `a header of ${headerBytes} bytes is too large: this is not a safetensors file`);
      }
      if (dataStart > fileBytes) {
        throw invalid(path, `cut short: the header takes ${headerBytes} bytes, and the file has ${fileBytes}`);
      }
      const header = await readFully(handle, path, new Uint8Array(headerBytes), 8);
      return new SafetensorsFile(path, handle, parseHeader(path, header, fileBytes - dataStart), dataStart);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /**
   * The values of a tensor in row-major order.
   * @throws ServingError checkpoint_invalid for an absent tensor, or a dtype other than F32, F16 and BF16.
   */
  async read(name: string): Promise<Float32Array> {
    const { dtype, begin, end } = this.#info(name);
    const at = this.#dataStart + begin;
    if (dtype === 'F32') {
      const bytes = await readFully(this.#handle, this.path, new Uint8Array(end - begin), at);
      return new Float32Array(bytes.buffer);
    }
    if (dtype !== 'F16' && dtype !== 'BF16') {
      throw invalid(
        this.path,
        `tensor ${JSON.stringify(name)}: ${dtype} weights are not supported (F32, F16, BF16 are)`,
      );
    }
    const values = new Float32Array((end - begin) / 2);
    const piece = new Uint16Array(Math.min(values.length, READ_BYTES / 2));
    for (let done = 0; done < values.length; done += piece.length) {
      const part = piece.subarray(0, Math.min(piece.length, values.length - done));
      const bytes = new Uint8Array(part.buffer, 0, part.byteLength);
      await readFully(this.#handle, this.path, bytes, at + 2 * done);
      decode16(dtype, part, values.subarray(done, done + part.length));
    }
    return values;
  }

  /** One tensor's bytes as stored. */
  async bytes(name: string): Promise<Uint8Array> {
    const { begin, end } = this.#info(name);
    return readFully(this.#handle, this.path, new Uint8Array(end - begin), this.#dataStart + begin);
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }

  #info(name: string): TensorInfo {
    const info = this.tensors.get(name);
    if (!info) throw invalid(this.path, `tensor ${JSON.stringify(name)} is missing`);
    return info;
  }
}
