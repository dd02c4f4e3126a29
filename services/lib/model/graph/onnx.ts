/**
 * Writes a graph as an ONNX file: the structure as protobuf in `model.onnx`, and the weights beside it in `model.bin`,
 * one after the other at page boundaries so that the runtime can map them. Weights pass through memory one at a time
 * and offsets are decimal strings, so only the disk bounds the size of a model.
 */
import { createHash } from 'node:crypto';
import { type FileHandle, link, open, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import protobuf from 'protobufjs';
import {
  type AttributeKind,
  type AttributeValue,
  type Constant,
  type DataType,
  type Graph,
  type Node,
  OPERATORS,
  type StoredArray,
  type StoredType,
  type TensorForm,
} from './graph.ts';

/** The part of onnx.proto that our graphs use. The field numbers are the format's. */
const SCHEMA = `
syntax = "proto3";
message StringStringEntryProto { string key = 1; string value = 2; }
message OperatorSetIdProto { string domain = 1; int64 version = 2; }
message AttributeProto {
  string name = 1; optional float f = 2; optional int64 i = 3; optional bytes s = 4; repeated int64 ints = 8;
  int32 type = 20;
}
message NodeProto {
  repeated string input = 1; repeated string output = 2; string name = 3; string op_type = 4;
  repeated AttributeProto attribute = 5; string domain = 7;
}
message TensorProto {
  repeated int64 dims = 1; int32 data_type = 2; string name = 8; bytes raw_data = 9;
  repeated StringStringEntryProto external_data = 13; int32 data_location = 14;
}
message TensorShapeProto {
  message Dimension { oneof value { int64 dim_value = 1; string dim_param = 2; } }
  repeated Dimension dim = 1;
}
message TypeProto {
  message Tensor { int32 elem_type = 1; TensorShapeProto shape = 2; }
  Tensor tensor_type = 1;
}
message ValueInfoProto { string name = 1; TypeProto type = 2; }
message GraphProto {
  repeated NodeProto node = 1; string name = 2; repeated TensorProto initializer = 5;
  repeated ValueInfoProto input = 11; repeated ValueInfoProto output = 12;
}
message ModelProto {
  int64 ir_version = 1; string producer_name = 2; GraphProto graph = 7; repeated OperatorSetIdProto opset_import = 8;
}`;
const ModelProto = protobuf.parse(SCHEMA, { keepCase: true }).root.lookupType('ModelProto');

const IR_VERSION = 10;
const OPSET = 21;
const TYPE_ID = { float32: 1, float16: 10, uint8: 2, int8: 3, int32: 6, int64: 7, bool: 9 } as const satisfies Record<
  DataType,
  number
>;
const WEIGHTS = 'model.bin';
/** Every weight in `model.bin` starts at a multiple of this, in bytes. */
const ALIGNMENT = 4096;
const WRITE_BYTES = 64 * 1024 * 1024;
const EXTERNAL = 1;
const ATTRIBUTE_FLOAT = 1;
const ATTRIBUTE_INT = 2;
const ATTRIBUTE_STRING = 3;
const ATTRIBUTE_INTS = 7;

/** A file that was written, with the SHA-256 of its content in hex. */
interface WrittenFile {
  readonly name: string;
  readonly bytes: number;
  readonly sha256: string;
}

interface WriteOptions {
  readonly signal?: AbortSignal;
  /** The file that has the weights of this graph and of others; without it the graph gets one of its own. */
  readonly shared?: SharedWeights;
  /** Told after each weight: bytes of weights written so far, and bytes of all weights. */
  readonly onProgress?: (done: number, total: number) => void;
}

const bytesOf = (data: StoredArray) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

function attributeProto(name: string, kind: AttributeKind, value: AttributeValue): object {
  switch (kind) {
    case 'type':
      return { name, type: ATTRIBUTE_INT, i: TYPE_ID[value as DataType] };
    case 'text':
      return { name, type: ATTRIBUTE_STRING, s: Buffer.from(value as string) };
    case 'ints':
      return { name, type: ATTRIBUTE_INTS, ints: value };
    case 'float':
      return { name, type: ATTRIBUTE_FLOAT, f: value };
    case 'int':
      return { name, type: ATTRIBUTE_INT, i: value };
  }
}

const nodeProto = (node: Node) => {
  const { domain, attributes } = OPERATORS[node.operator];
  const kinds: Readonly<Record<string, AttributeKind>> = attributes;
  const attribute = Object.entries(node.attributes).map(([name, value]) => attributeProto(name, kinds[name]!, value));
  return { op_type: node.operator, name: node.outputs[0], domain, input: node.inputs, output: node.outputs, attribute };
};

const valueProto = ({ name, type, dims }: TensorForm) => ({
  name,
  type: {
    tensor_type: {
      elem_type: TYPE_ID[type],
      shape: { dim: dims.map((dim) => (typeof dim === 'number' ? { dim_value: dim } : { dim_param: dim })) },
    },
  },
});

const constantProto = ({ name, type, dims, data }: Constant) => ({
  name,
  dims,
  data_type: TYPE_ID[type],
  raw_data: bytesOf(data),
});

const weightProto = ({ name, type, dims }: TensorForm, file: string, offset: number, length: number) => ({
  name,
  dims,
  data_type: TYPE_ID[type],
  data_location: EXTERNAL,
  external_data: [
    { key: 'location', value: file },
    { key: 'offset', value: String(offset) },
    { key: 'length', value: String(length) },
  ],
});

const BYTES_PER_ELEMENT = { float32: 4, float16: 2, uint8: 1, int8: 1, int64: 8 } as const satisfies Record<
  StoredType,
  number
>;
const byteLength = ({ type, dims }: Graph['weights'][number]['parts'][number]) =>
  dims.reduce((product, dim) => product * dim, BYTES_PER_ELEMENT[type]);

/** Bytes of the weights that a graph declares, without the padding between them in its file. */
export const weightBytes = ({ weights }: Graph): number =>
  weights.flatMap(({ parts }) => parts).reduce((sum, part) => sum + byteLength(part), 0);

/** Takes the weights of one graph, one after the other. */
interface WeightSink {
  /** @returns where the bytes lie in the file that the graph reads */
  append(bytes: Uint8Array, signal?: AbortSignal): Promise<number>;
  /** Puts that file under a path, where it does not lie there already. */
  finish(path: string): Promise<Omit<WrittenFile, 'name'>>;
}

/** Writes bytes to the end of a file, each time from a page boundary on. */
class Appender {
  readonly #handle: FileHandle;
  #position = 0;

  constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  get position(): number {
    return this.#position;
  }

  /** @param onBytes is told of all that is written, padding included. @returns the offset of the bytes */
  async append(bytes: Uint8Array, onBytes: (part: Uint8Array) => void, signal?: AbortSignal): Promise<number> {
    await this.#write(new Uint8Array((ALIGNMENT - (this.#position % ALIGNMENT)) % ALIGNMENT), onBytes, signal);
    const offset = this.#position;
    await this.#write(bytes, onBytes, signal);
    return offset;
  }

  async #write(bytes: Uint8Array, onBytes: (part: Uint8Array) => void, signal?: AbortSignal): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      signal?.throwIfAborted();
      const { bytesWritten } = await this.#handle.write(bytes.subarray(done, done + WRITE_BYTES));
      onBytes(bytes.subarray(done, done + bytesWritten));
      done += bytesWritten;
    }
    this.#position += bytes.length;
  }
}

/** A file of the weights of one graph alone. */
class OwnWeights implements WeightSink {
  readonly #file: Appender;
  readonly #hash = createHash('sha256');

  constructor(handle: FileHandle) {
    this.#file = new Appender(handle);
  }

  append(bytes: Uint8Array, signal?: AbortSignal): Promise<number> {
    return this.#file.append(bytes, (part) => this.#hash.update(part), signal);
  }

  async finish(): Promise<Omit<WrittenFile, 'name'>> {
    return { bytes: this.#file.position, sha256: this.#hash.digest('hex') };
  }
}

/**
 * A file of the weights of several graphs, in which equal weights lie once. The runtime maps files, so sessions of
 * these graphs share the memory of what they have in common, also those of other processes.
 */
export class SharedWeights {
  readonly #path: string;
  readonly #handle: FileHandle;
  readonly #file: Appender;
  /** Offsets by the SHA-256 of the bytes that lie there. */
  readonly #offsets = new Map<string, number>();

  private constructor(path: string, handle: FileHandle) {
    this.#path = path;
    this.#handle = handle;
    this.#file = new Appender(handle);
  }

  /** @param path a file that does not exist; graphs must be written to folders of the same file system */
  static async create(path: string): Promise<SharedWeights> {
    return new SharedWeights(path, await open(path, 'wx'));
  }

  /** Bytes of the file. */
  get bytes(): number {
    return this.#file.position;
  }

  /** @internal Where the weights of the next graph go. Graphs are written one after the other. */
  sink(): WeightSink {
    const digests = createHash('sha256');
    return {
      append: async (bytes, signal) => {
        const digest = createHash('sha256').update(bytes).digest('hex');
        digests.update(digest);
        const offset = this.#offsets.get(digest) ?? (await this.#file.append(bytes, () => {}, signal));
        this.#offsets.set(digest, offset);
        return offset;
      },
      finish: async (path) => {
        await link(this.#path, path);
        return { bytes: this.#file.position, sha256: digests.digest('hex') };
      },
    };
  }

  /** Takes the file's name away. Its space is given back when the last session that has mapped it is disposed of. */
  async close(): Promise<void> {
    await rm(this.#path, { force: true });
    await this.#handle.close();
  }
}

/**
 * Writes `model.bin`, then `model.onnx`, into `dir`. The same graph and weights give the same bytes.
 * @throws the signal's reason when aborted; whatever reading a weight throws.
 */
export async function writeModel(graph: Graph, dir: string, options: WriteOptions = {}): Promise<WrittenFile[]> {
  const { shared } = options;
  const path = join(dir, WEIGHTS);
  if (shared) return writeWith(shared.sink(), graph, dir, options);
  const handle = await open(path, 'wx');
  try {
    return await writeWith(new OwnWeights(handle), graph, dir, options);
  } finally {
    await handle.close();
  }
}

async function writeWith(
  sink: WeightSink,
  graph: Graph,
  dir: string,
  { signal, onProgress }: WriteOptions,
): Promise<WrittenFile[]> {
  const total = weightBytes(graph);
  let done = 0;
  const initializer: object[] = graph.constants.map(constantProto);
  for (const { parts, produce } of graph.weights) {
    signal?.throwIfAborted();
    const arrays = await produce();
    for (const [i, part] of parts.entries()) {
      const bytes = bytesOf(arrays[i]!);
      const expected = byteLength(part);
      if (bytes.length !== expected)
        throw new Error(`weight ${part.name}: ${bytes.length} bytes instead of ${expected}`);
      initializer.push(weightProto(part, WEIGHTS, await sink.append(bytes, signal), bytes.length));
      done += bytes.length;
    }
    onProgress?.(done, total);
  }
  const weights = { name: WEIGHTS, ...(await sink.finish(join(dir, WEIGHTS))) };
  return [await writeStructure(graph, initializer, dir), weights];
}

/** The bytes of a graph that has no weights, for a session that is opened without a file. */
export const encodeModel = (graph: Graph): Uint8Array => encode(graph, graph.constants.map(constantProto));

function encode(graph: Graph, initializer: object[]): Uint8Array {
  return ModelProto.encode({
    ir_version: IR_VERSION,
    producer_name: 'llavacode',
    opset_import: [
      { domain: '', version: OPSET },
      { domain: 'com.microsoft', version: 1 },
    ],
    graph: {
      name: 'graph',
      node: graph.nodes.map(nodeProto),
      initializer,
      input: graph.inputs.map(valueProto),
      output: graph.outputs.map(valueProto),
    },
  }).finish();
}

async function writeStructure(graph: Graph, initializer: object[], dir: string): Promise<WrittenFile> {
  const bytes = encode(graph, initializer);
  const name = 'model.onnx';
  await writeFile(join(dir, name), bytes, { flag: 'wx' });
  return { name, bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
}

/** One field of an encoded message as it stands. */
export interface Field {
  readonly number: number;
  /** The field with its tag. */
  readonly whole: Uint8Array;
  /** Content of a field of bytes, text or a message; empty for others. */
  readonly content: Uint8Array;
  /** Value of a field of a whole number; undefined for others. */
  readonly value: number | undefined;
}

/** Wire type of fields of whole numbers. */
const VARINT = 0;
/** Wire type of fields of bytes, text and messages. */
const DELIMITED = 2;
const NOTHING = new Uint8Array(0);

/** The fields of an encoded message, for a change that keeps byte for byte what it does not know. */
export function fieldsOf(message: Uint8Array): Field[] {
  const reader = protobuf.Reader.create(message);
  const fields: Field[] = [];
  while (reader.pos < reader.len) {
    const start = reader.pos;
    const tag = reader.uint32();
    const wireType = tag & 7;
    const content = wireType === DELIMITED ? reader.bytes() : NOTHING;
    const value = wireType === VARINT ? Number(reader.int64().toString()) : undefined;
    if (wireType !== DELIMITED && wireType !== VARINT) reader.skipType(wireType);
    fields.push({ number: tag >>> 3, whole: message.subarray(start, reader.pos), content, value });
  }
  return fields;
}

/** An encoded field of bytes, text or a message. */
export const field = (number: number, content: Uint8Array | string): Uint8Array =>
  protobuf.Writer.create()
    .uint32((number << 3) | DELIMITED)
    .bytes(Buffer.from(content))
    .finish();

/** An encoded field of a whole number. */
export const numberField = (number: number, value: number): Uint8Array =>
  protobuf.Writer.create()
    .uint32(number << 3)
    .int64(value)
    .finish();
