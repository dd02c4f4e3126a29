/**
 * Writes a graph as an ONNX file: the structure as protobuf in `model.onnx`, and the weights beside it in `model.bin`,
 * one after the other at page boundaries so that the runtime can map them. Weights pass through memory one at a time
 * and offsets are decimal strings, so only the disk bounds the size of a model.
 */
import { createHash, type Hash } from 'node:crypto';
import { type FileHandle, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import protobuf from 'protobufjs';
import {
  type AttributeKind,
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
message AttributeProto { string name = 1; optional float f = 2; optional int64 i = 3; int32 type = 20; }
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
/** Every weight in `model.bin` starts at a multiple of this, in bytes. */
const ALIGNMENT = 4096;
const WRITE_BYTES = 64 * 1024 * 1024;
const EXTERNAL = 1;
const ATTRIBUTE_FLOAT = 1;
const ATTRIBUTE_INT = 2;

/** A file that was written, with the SHA-256 of its content in hex. */
interface WrittenFile {
  readonly name: string;
  readonly bytes: number;
  readonly sha256: string;
}

interface WriteOptions {
  readonly signal?: AbortSignal;
  /** Told after each weight: bytes of weights written so far, and bytes of all weights. */
  readonly onProgress?: (done: number, total: number) => void;
}

const bytesOf = (data: StoredArray) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

function attributeProto(name: string, kind: AttributeKind, value: number | DataType): object {
  if (typeof value === 'string') return { name, type: ATTRIBUTE_INT, i: TYPE_ID[value] };
  return kind === 'float' ? { name, type: ATTRIBUTE_FLOAT, f: value } : { name, type: ATTRIBUTE_INT, i: value };
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

/** Appends to a file and hashes its content on the way. */
class Appender {
  readonly #handle: FileHandle;
  readonly #hash: Hash = createHash('sha256');
  position = 0;

  constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  async append(bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      signal?.throwIfAborted();
      const { bytesWritten } = await this.#handle.write(bytes.subarray(done, done + WRITE_BYTES));
      this.#hash.update(bytes.subarray(done, done + bytesWritten));
      done += bytesWritten;
    }
    this.position += bytes.length;
  }

  digest(): string {
    return this.#hash.digest('hex');
  }
}

/**
 * Writes `model.bin`, then `model.onnx`, into `dir`. The same graph and weights give the same bytes.
 * @throws the signal's reason when aborted; whatever reading a weight throws.
 */
export async function writeModel(graph: Graph, dir: string, options: WriteOptions = {}): Promise<WrittenFile[]> {
  const { signal, onProgress } = options;
  const name = 'model.bin';
  const total = weightBytes(graph);
  let done = 0;
  const initializer: object[] = graph.constants.map(constantProto);
  const handle = await open(join(dir, name), 'wx');
  let weights: WrittenFile;
  try {
    const file = new Appender(handle);
    for (const { parts, produce } of graph.weights) {
      signal?.throwIfAborted();
      const arrays = await produce();
      for (const [i, part] of parts.entries()) {
        const bytes = bytesOf(arrays[i]!);
        const expected = byteLength(part);
        if (bytes.length !== expected)
          throw new Error(`weight ${part.name}: ${bytes.length} bytes instead of ${expected}`);
        await file.append(new Uint8Array((ALIGNMENT - (file.position % ALIGNMENT)) % ALIGNMENT));
        initializer.push(weightProto(part, name, file.position, bytes.length));
        await file.append(bytes, signal);
        done += bytes.length;
      }
      onProgress?.(done, total);
    }
    weights = { name, bytes: file.position, sha256: file.digest() };
  } finally {
    await handle.close();
  }
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
