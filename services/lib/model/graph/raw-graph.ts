/**
 * A decoder graph as it lies on disk, written by us or by ONNX Runtime, for changes of its structure. What a change
 * does not know stays byte for byte. Field numbers and enumerations are those of onnx.proto.
 */
import { type Field, field, fieldsOf, numberField } from './onnx.ts';

export const MODEL_GRAPH = 7;
export const GRAPH_NODE = 1;
export const GRAPH_INITIALIZER = 5;
export const GRAPH_INPUT = 11;
export const GRAPH_OUTPUT = 12;
const NODE_INPUT = 1;
const NODE_OUTPUT = 2;
const NODE_NAME = 3;
const NODE_OPERATOR = 4;
const NODE_ATTRIBUTE = 5;
const NODE_DOMAIN = 7;
const ATTRIBUTE_NAME = 1;
const ATTRIBUTE_VALUE = 3;
const ATTRIBUTE_TYPE = 20;
const ATTRIBUTE_INT = 2;
const TYPE = { float32: 1, int32: 6, int64: 7 } as const;

export const textOf = ({ content }: Field) => Buffer.from(content).toString();

/** A node: its names, and all else as it stands. */
export interface RawNode {
  readonly operator: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** Operator, attributes, domain. */
  readonly rest: readonly Uint8Array[];
}

export function nodeOf(content: Uint8Array): RawNode {
  const fields = fieldsOf(content);
  const named = (number: number) => fields.filter((each) => each.number === number).map(textOf);
  const names = [NODE_INPUT, NODE_OUTPUT, NODE_NAME];
  return {
    operator: named(NODE_OPERATOR)[0] ?? '',
    inputs: named(NODE_INPUT),
    outputs: named(NODE_OUTPUT),
    rest: fields.filter(({ number }) => !names.includes(number)).map(({ whole }) => whole),
  };
}

export const nodeField = ({ inputs, outputs, rest }: Omit<RawNode, 'operator'>): Uint8Array =>
  field(
    GRAPH_NODE,
    Buffer.concat([
      ...inputs.map((name) => field(NODE_INPUT, name)),
      ...outputs.map((name) => field(NODE_OUTPUT, name)),
      field(NODE_NAME, outputs[0]!),
      ...rest,
    ]),
  );

/** The attribute of a whole number. */
export function attribute(name: string, value: number): Uint8Array {
  return field(
    NODE_ATTRIBUTE,
    Buffer.concat([
      field(ATTRIBUTE_NAME, name),
      numberField(ATTRIBUTE_VALUE, value),
      numberField(ATTRIBUTE_TYPE, ATTRIBUTE_INT),
    ]),
  );
}

/** Name of an attribute, among the fields of a node; undefined for another field. */
function attributeOf(whole: Uint8Array): { readonly name: string; readonly fields: readonly Field[] } | undefined {
  const [{ number, content }] = fieldsOf(whole) as [Field];
  if (number !== NODE_ATTRIBUTE) return undefined;
  const fields = fieldsOf(content);
  const name = fields.find((each) => each.number === ATTRIBUTE_NAME);
  return name && { name: textOf(name), fields };
}

/** Value of an attribute of a whole number. */
export function numberOf({ operator, rest }: RawNode, name: string): number {
  const found = rest.map(attributeOf).find((each) => each?.name === name);
  const value = found?.fields.find(({ number }) => number === ATTRIBUTE_VALUE)?.value;
  if (value === undefined) throw new Error(`a node ${operator} has no attribute ${name} of a whole number`);
  return value;
}

/** What a node has besides its names, without the attributes of these names. */
export const withoutAttributes = ({ rest }: RawNode, names: readonly string[]): Uint8Array[] =>
  rest.filter((whole) => !names.includes(attributeOf(whole)?.name ?? ''));

/** A node of the standard operators. */
export const node = (
  operator: string,
  inputs: readonly string[],
  outputs: readonly string[],
  ...attributes: Uint8Array[]
) => nodeField({ inputs, outputs, rest: [field(NODE_OPERATOR, operator), ...attributes] });

/** A node of ONNX Runtime's own operators. */
export const runtimeNode = (
  operator: string,
  inputs: readonly string[],
  outputs: readonly string[],
  ...attributes: Uint8Array[]
) => node(operator, inputs, outputs, ...attributes, field(NODE_DOMAIN, 'com.microsoft'));

/** A constant tensor, whose data are little-endian. */
export function constant(name: string, type: keyof typeof TYPE, dims: readonly number[], data: Uint8Array): Uint8Array {
  const [dimsField, dataType, nameField, rawData] = [1, 2, 8, 9];
  return field(
    GRAPH_INITIALIZER,
    Buffer.concat([
      ...dims.map((dim) => numberField(dimsField, dim)),
      numberField(dataType, TYPE[type]),
      field(nameField, name),
      field(rawData, data),
    ]),
  );
}

/** Name, type and shape of an input or output: what its field holds. */
export function valueInfo(name: string, type: keyof typeof TYPE, dims: readonly (number | string)[]): Uint8Array {
  const shape = dims.map((dim) => field(1, typeof dim === 'number' ? numberField(1, dim) : field(2, dim)));
  const tensor = Buffer.concat([numberField(1, TYPE[type]), field(2, Buffer.concat(shape))]);
  return Buffer.concat([field(1, name), field(2, field(1, tensor))]);
}

/** Name of an input or output. @param content of its field. */
export const nameOf = (content: Uint8Array): string => textOf(fieldsOf(content)[0]!);

/**
 * @param model the bytes of an ONNX file.
 * @param change gets the graph's fields, and gives those of the new graph.
 */
export const withGraph = (model: Uint8Array, change: (fields: readonly Field[]) => readonly Uint8Array[]): Uint8Array =>
  Buffer.concat(
    fieldsOf(model).map((each) =>
      each.number === MODEL_GRAPH
        ? field(MODEL_GRAPH, Buffer.concat(change(fieldsOf(each.content)) as Uint8Array[]))
        : each.whole,
    ),
  );
