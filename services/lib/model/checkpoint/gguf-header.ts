/**
 * Reads the header of a GGUF file (versions 2 and 3, little-endian): a magic number, metadata as typed pairs, then the
 * name, shape, type and place of every tensor; the tensors follow. The whole header is validated before any of it is
 * used: a number in it is never the size of an allocation, and every tensor must lie within the file.
 *
 * It is a parser of our own, because a model file comes from anywhere. Hugging Face's @huggingface/gguf trusts it: it
 * reads on with zeros where one is cut short, cuts a text silently that goes on after the bytes at hand, lets a key
 * that stands twice replace the first one, and checks neither types nor places of tensors against the file. It does not
 * read the tensors, which is the larger part of the work here.
 */
import { ServingError } from '../../process/errors.ts';
import { GGML_TYPES, type GgmlType } from './ggml-types.ts';

export type GgufValue = string | number | bigint | boolean | readonly GgufValue[];

export interface GgufTensor {
  readonly type: GgmlType;
  /** In row-major order, as safetensors has it: the file has the sizes in the other order. */
  readonly shape: readonly number[];
  /** The first byte of the tensor in the file, and the byte after its last one. */
  readonly begin: number;
  readonly end: number;
}

export interface GgufHeader {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

const MAGIC = 0x46554747; // "GGUF"
const VERSIONS = [2, 3];
const DEFAULT_ALIGNMENT = 32;
/** Alignments beyond this would only pad: writers use 32. */
const MAX_ALIGNMENT = 2 ** 20;
const MAX_DIMS = 4;
/** Values in the arrays of all metadata: a vocabulary of 250,000 tokens has a million. */
const MAX_VALUES = 2 ** 23;
/** Arrays within arrays: no key has any, and two levels are more than enough. */
const MAX_DEPTH = 2;

const ARRAY = 9;
/** Readers of values, by the number of their type. */
const VALUES: Readonly<Record<number, (reader: HeaderReader) => GgufValue>> = {
  0: (reader) => reader.number(1, (view, at) => view.getUint8(at)),
  1: (reader) => reader.number(1, (view, at) => view.getInt8(at)),
  2: (reader) => reader.number(2, (view, at) => view.getUint16(at, true)),
  3: (reader) => reader.number(2, (view, at) => view.getInt16(at, true)),
  4: (reader) => reader.uint32(),
  5: (reader) => reader.number(4, (view, at) => view.getInt32(at, true)),
  6: (reader) => reader.number(4, (view, at) => view.getFloat32(at, true)),
  7: (reader) => reader.number(1, (view, at) => view.getUint8(at)) !== 0,
  8: (reader) => reader.text(),
  10: (reader) => reader.number(8, (view, at) => view.getBigUint64(at, true)),
  11: (reader) => reader.number(8, (view, at) => view.getBigInt64(at, true)),
  12: (reader) => reader.number(8, (view, at) => view.getFloat64(at, true)),
};

const invalid = (file: string, what: string) => new ServingError('checkpoint_invalid', `${file}: ${what}`);
const quoted = (text: string) => JSON.stringify(text.length > 100 ? `${text.slice(0, 100)}…` : text);

/**
 * @param file name for messages.
 * @param bytes the beginning of the file, or all of it.
 * @param fileBytes length of the file.
 * @returns undefined if the header goes on after `bytes` and the file does, too.
 * @throws ServingError checkpoint_invalid
 */
export function parseGgufHeader(file: string, bytes: Uint8Array, fileBytes: number): GgufHeader | undefined {
  try {
    return readHeader(new HeaderReader(file, bytes), file, fileBytes);
  } catch (error) {
    if (!(error instanceof EndOfBytes)) throw error;
    if (bytes.length < fileBytes) return undefined;
    throw invalid(file, `cut short: the header goes on after the file's ${fileBytes} bytes`);
  }
}

function readHeader(reader: HeaderReader, file: string, fileBytes: number): GgufHeader {
  if (reader.uint32() !== MAGIC) throw invalid(file, 'does not begin with "GGUF": this is not a GGUF file');
  const version = reader.uint32();
  if (!VERSIONS.includes(version)) {
    throw invalid(file, `GGUF version ${version} is not supported (${VERSIONS.join(' and ')} are): convert it again`);
  }
  const tensorCount = reader.size();
  const pairCount = reader.size();
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < pairCount; i++) {
    const key = reader.text();
    if (metadata.has(key)) throw invalid(file, `the metadata has ${quoted(key)} twice`);
    metadata.set(key, readValue(reader, file, key, reader.uint32(), 0));
  }
  const places = new Map<string, { type: GgmlType; shape: number[]; offset: number; bytes: number }>();
  for (let i = 0; i < tensorCount; i++) {
    const name = reader.text();
    if (places.has(name)) throw invalid(file, `there are two tensors named ${quoted(name)}`);
    places.set(name, readPlace(reader, file, name));
  }
  const alignment = metadata.get('general.alignment') ?? DEFAULT_ALIGNMENT;
  if (typeof alignment !== 'number' || !(alignment >= 1 && alignment <= MAX_ALIGNMENT) || alignment % 8 !== 0) {
    throw invalid(file, `general.alignment ${alignment} is not a multiple of 8 up to ${MAX_ALIGNMENT}`);
  }
  const dataStart = Math.ceil(reader.position / alignment) * alignment;
  const tensors = new Map<string, GgufTensor>();
  let last = 0;
  const inOrder = [...places].sort(([, a], [, b]) => a.offset - b.offset || a.bytes - b.bytes);
  for (const [name, { type, shape, offset, bytes }] of inOrder) {
    if (offset % alignment !== 0)
      throw invalid(file, `tensor ${quoted(name)}: ${offset} is not a multiple of ${alignment}`);
    if (offset < last) throw invalid(file, `tensor ${quoted(name)}: overlaps the tensor before it`);
    last = offset + bytes;
    if (dataStart + last > fileBytes) {
      const place = `[${dataStart + offset}, ${dataStart + last})`;
      throw invalid(
        file,
        `tensor ${quoted(name)}: bytes ${place} are not within the file's ${fileBytes}: was it cut short?`,
      );
    }
    tensors.set(name, { type, shape, begin: dataStart + offset, end: dataStart + last });
  }
  return { metadata, tensors };
}

function readValue(reader: HeaderReader, file: string, key: string, type: number, depth: number): GgufValue {
  if (type !== ARRAY) {
    const read = VALUES[type];
    if (read === undefined) throw invalid(file, `${quoted(key)} has a value of type ${type}, which is not known`);
    return read(reader);
  }
  if (depth === MAX_DEPTH) throw invalid(file, `${quoted(key)} has arrays within arrays within arrays`);
  const elements = reader.uint32();
  const count = reader.size();
  reader.values += count;
  if (reader.values > MAX_VALUES)
    throw invalid(file, `the arrays up to ${quoted(key)} have ${reader.values} values: too many`);
  const values: GgufValue[] = [];
  for (let i = 0; i < count; i++) values.push(readValue(reader, file, key, elements, depth + 1));
  return values;
}

function readPlace(reader: HeaderReader, file: string, name: string) {
  const count = reader.uint32();
  if (count < 1 || count > MAX_DIMS) {
    throw invalid(file, `tensor ${quoted(name)} has ${count} dimensions, and 1 to ${MAX_DIMS} are possible`);
  }
  const shape = Array.from({ length: count }, () => reader.size()).reverse();
  const number = reader.uint32();
  const type = GGML_TYPES.get(number);
  if (type === undefined) {
    const known = [...GGML_TYPES.values()].map((each) => each.name).join(', ');
    throw invalid(file, `tensor ${quoted(name)} has type ${number}, which is not supported (${known} are)`);
  }
  const offset = reader.size();
  const elements = shape.reduce((product, dim) => product * dim, 1);
  const columns = shape.at(-1)!;
  if (columns % type.block !== 0) {
    throw invalid(
      file,
      `tensor ${quoted(name)}: ${columns} columns are not a multiple of ${type.name}'s ${type.block}`,
    );
  }
  const bytes = (elements / type.block) * type.bytes;
  if (!Number.isSafeInteger(elements) || !Number.isSafeInteger(offset + bytes)) {
    throw invalid(file, `tensor ${quoted(name)} [${shape}] is too large`);
  }
  return { type, shape, offset, bytes };
}

/** The header goes on after the bytes that are at hand. */
class EndOfBytes extends Error {}

class HeaderReader {
  position = 0;
  /** Values of arrays, so far. */
  values = 0;
  readonly #file: string;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

  constructor(file: string, bytes: Uint8Array) {
    this.#file = file;
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  number<T>(length: number, read: (view: DataView, at: number) => T): T {
    return read(this.#view, this.#take(length));
  }

  uint32(): number {
    return this.number(4, (view, at) => view.getUint32(at, true));
  }

  /** A length, count or offset of 64 bits. */
  size(): number {
    const size = Number(this.number(8, (view, at) => view.getBigUint64(at, true)));
    if (Number.isSafeInteger(size)) return size;
    throw invalid(this.#file, `a size of ${size} at byte ${this.position - 8} is too large: this is not a sound file`);
  }

  text(): string {
    const length = this.size();
    const start = this.#take(length);
    try {
      return this.#decoder.decode(this.#bytes.subarray(start, start + length));
    } catch {
      throw invalid(this.#file, `the text at byte ${start} is not UTF-8`);
    }
  }

  #take(length: number): number {
    const start = this.position;
    if (length > this.#bytes.length - start) throw new EndOfBytes();
    this.position = start + length;
    return start;
  }
}
