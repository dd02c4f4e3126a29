/**
 * Reads a checkpoint as torch.save writes it (`.pth`, `.pt`, `.bin`): a zip archive with a pickle that describes the
 * tensors, and one file for each storage. Nothing in it is executed.
 */
import { endianness } from 'node:os';
import { crc32 } from 'node:zlib';
import { type Entry, openPromise, type ZipFile } from 'yauzl';
import { widen } from '../../numeric/half.ts';
import { ServingError } from '../../process/errors.ts';
import { reasonOf } from '../../process/os-errors.ts';
import { elementBytes, type PickledTensor, readPickledTensors } from './pickle.ts';

/** The most bytes of a pickle: those of models of 7 billion parameters have less than 1 MB. */
const MAX_PICKLE_BYTES = 64 * 1024 * 1024;

const invalid = (file: string, what: string, cause?: unknown) =>
  new ServingError('checkpoint_invalid', `${file}: ${what}`, { cause });

export class TorchFile {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, PickledTensor>;
  readonly #zip: ZipFile;
  /** Entries of storages by key. */
  readonly #storages: ReadonlyMap<string, Entry>;

  private constructor(
    path: string,
    tensors: ReadonlyMap<string, PickledTensor>,
    zip: ZipFile,
    storages: ReadonlyMap<string, Entry>,
  ) {
    this.path = path;
    this.tensors = tensors;
    this.#zip = zip;
    this.#storages = storages;
  }

  /** @throws ServingError checkpoint_invalid for a file that is not such an archive, or whose parts do not fit. */
  static async open(path: string): Promise<TorchFile> {
    const notZip =
      'is not a zip archive as torch.save writes it: save it with a PyTorch from 1.6 on, or as safetensors';
    const zip = await openPromise(path, { lazyEntries: true, autoClose: false }).catch((error: unknown) => {
      throw invalid(path, `${notZip} (${reasonOf(error)})`, error);
    });
    try {
      const entries = new Map<string, Entry>();
      for await (const entry of zip.eachEntry()) entries.set(entry.fileName, entry);
      const pickle = [...entries.keys()].find((name) => /^[^/]+\/data\.pkl$/.test(name));
      if (pickle === undefined) throw invalid(path, notZip);
      const root = pickle.slice(0, -'data.pkl'.length);
      const order = entries.get(`${root}byteorder`);
      if (order && (await content(path, zip, order, 16)).toString() !== 'little') {
        throw invalid(path, 'has numbers in another order of bytes: save it on a little-endian machine');
      }
      const tensors = readPickledTensors(path, await content(path, zip, entries.get(pickle)!, MAX_PICKLE_BYTES));
      const storages = new Map<string, Entry>();
      for (const [name, tensor] of tensors) {
        const entry = entries.get(`${root}data/${tensor.storage.key}`);
        if (!entry) throw invalid(path, `tensor ${JSON.stringify(name)}: its data are missing`);
        assertFits(path, name, tensor, entry);
        storages.set(tensor.storage.key, entry);
      }
      return new TorchFile(path, tensors, zip, storages);
    } catch (error) {
      zip.close();
      throw error instanceof ServingError ? error : invalid(path, reasonOf(error), error);
    }
  }

  /**
   * The values of a tensor in row-major order.
   * @throws ServingError checkpoint_invalid for an absent tensor, or damaged data.
   */
  async read(name: string): Promise<Float32Array> {
    const tensor = this.tensors.get(name);
    if (!tensor) throw invalid(this.path, `tensor ${JSON.stringify(name)} is missing`);
    const entry = this.#storages.get(tensor.storage.key)!;
    const bytes = await content(this.path, this.#zip, entry, entry.uncompressedSize);
    const width = elementBytes(tensor.storage);
    const start = tensor.offset * width;
    const count = tensor.shape.reduce((product, size) => product * size, 1);
    const values = new Uint8Array(bytes.subarray(start, start + count * width));
    return decode(values, tensor.storage.type);
  }

  async close(): Promise<void> {
    this.#zip.close();
  }
}

/** @throws ServingError checkpoint_invalid for a tensor that is not a row-major part of its storage. */
function assertFits(
  path: string,
  name: string,
  { storage, offset, shape, strides }: PickledTensor,
  entry: Entry,
): void {
  const tensor = `tensor ${JSON.stringify(name)}`;
  if (entry.uncompressedSize !== storage.count * elementBytes(storage)) {
    throw invalid(path, `${tensor}: ${storage.count} elements do not take ${entry.uncompressedSize} bytes`);
  }
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] !== 1 && strides[axis] !== stride) {
      throw invalid(path, `${tensor} is not in row-major order: save it with .contiguous()`);
    }
    stride *= shape[axis]!;
  }
  if (strides.length !== shape.length || offset + stride > storage.count) {
    throw invalid(path, `${tensor} [${shape}] does not fit its storage of ${storage.count} elements`);
  }
}

/** @throws ServingError checkpoint_invalid for an entry that is larger than `limit`, damaged or encrypted. */
async function content(path: string, zip: ZipFile, entry: Entry, limit: number): Promise<Buffer> {
  const { fileName, uncompressedSize } = entry;
  if (uncompressedSize > limit) throw invalid(path, `${fileName} has ${uncompressedSize} bytes, more than ${limit}`);
  try {
    const parts: Buffer[] = [];
    for await (const part of await zip.openReadStreamPromise(entry)) parts.push(part as Buffer);
    const bytes = Buffer.concat(parts);
    if (crc32(bytes) !== entry.crc32) throw new Error('its checksum is another one');
    return bytes;
  } catch (error) {
    throw invalid(path, `${fileName} cannot be read: ${reasonOf(error)}`, error);
  }
}

function decode(bytes: Uint8Array, type: PickledTensor['storage']['type']): Float32Array {
  if (endianness() !== 'LE') Buffer.from(bytes.buffer)[type === 'FloatStorage' ? 'swap32' : 'swap16']();
  if (type === 'FloatStorage') return new Float32Array(bytes.buffer);
  const halves = new Uint16Array(bytes.buffer);
  const values = new Float32Array(halves.length);
  if (type === 'HalfStorage') widen(halves, values);
  else {
    const bits = new Uint32Array(values.buffer);
    for (let i = 0; i < halves.length; i++) bits[i] = halves[i]! << 16;
  }
  return values;
}
