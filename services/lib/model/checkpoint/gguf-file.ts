/** A GGUF file on disk: its header, and the values of its tensors, read piece by piece. */
import { type FileHandle, open } from 'node:fs/promises';
import { ServingError } from '../../process/errors.ts';
import type { BlockLevels } from './ggml-types.ts';
import { type GgufHeader, type GgufTensor, parseGgufHeader } from './gguf-header.ts';
import { readFully } from './read-fully.ts';

/** Bytes of the first try to read the header: a vocabulary of 50,000 tokens takes 2 MiB. */
const FIRST_BYTES = 4 * 2 ** 20;
/** The largest header: vocabularies of 250,000 tokens take 10 MiB. */
const MAX_HEADER_BYTES = 128 * 2 ** 20;
/** Numbers that are decoded at once: whole blocks of every type. */
const PIECE = 2 ** 20;

const invalid = (file: string, what: string, cause?: unknown) =>
  new ServingError('checkpoint_invalid', `${file}: ${what}`, { cause });

export class GgufFile {
  readonly path: string;
  readonly metadata: GgufHeader['metadata'];
  readonly tensors: GgufHeader['tensors'];
  readonly #handle: FileHandle;

  private constructor(path: string, handle: FileHandle, { metadata, tensors }: GgufHeader) {
    this.path = path;
    this.metadata = metadata;
    this.tensors = tensors;
    this.#handle = handle;
  }

  /** @throws ServingError checkpoint_invalid if the file is absent, cut short or inconsistent. */
  static async open(path: string): Promise<GgufFile> {
    const handle = await open(path).catch((error: unknown) => {
      throw invalid(path, 'cannot be opened', error);
    });
    try {
      return new GgufFile(path, handle, await readHeader(handle, path));
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /**
   * The values of a tensor in row-major order, as llama.cpp dequantises them.
   * @throws ServingError checkpoint_invalid for an absent tensor.
   */
  async read(name: string): Promise<Float32Array> {
    const { type, shape, begin, end } = this.#info(name);
    const values = new Float32Array(shape.reduce((product, dim) => product * dim, 1));
    const pieceBytes = (PIECE / type.block) * type.bytes;
    const piece = new Uint8Array(Math.min(pieceBytes, end - begin));
    for (let done = 0; done < values.length; done += PIECE) {
      const part = values.subarray(done, done + PIECE);
      const at = begin + (done / type.block) * type.bytes;
      const bytes = piece.subarray(0, (part.length / type.block) * type.bytes);
      type.decode(await readFully(this.#handle, this.path, bytes, at), part);
    }
    return values;
  }

  /** Levels and scales of a tensor whose values are nothing else; undefined for other types. */
  levels(name: string): (() => Promise<BlockLevels>) | undefined {
    const { type, begin, end } = this.#info(name);
    const { levels } = type;
    if (levels === undefined) return undefined;
    return async () => levels(await readFully(this.#handle, this.path, new Uint8Array(end - begin), begin));
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }

  #info(name: string): GgufTensor {
    const info = this.tensors.get(name);
    if (!info) throw invalid(this.path, `tensor ${JSON.stringify(name)} is missing`);
    return info;
  }
}

async function readHeader(handle: FileHandle, path: string): Promise<GgufHeader> {
  const { size } = await handle.stat();
  const most = Math.min(size, MAX_HEADER_BYTES);
  for (let length = Math.min(most, FIRST_BYTES); ; length = Math.min(most, 2 * length)) {
    const header = parseGgufHeader(path, await readFully(handle, path, new Uint8Array(length), 0), size);
    if (header !== undefined) return header;
    if (length === most) throw invalid(path, `the header takes more than ${MAX_HEADER_BYTES} bytes: this is not sound`);
  }
}
