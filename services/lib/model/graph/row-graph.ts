/**
 * The graph of a verify run, made of a decoder graph as it lies on disk: several tokens of one sequence in one run,
 * with the logits and the KV that as many decode steps of this sequence give, bit for bit.
 *
 * A prompt chunk does not give these: attention over several queries adds in another order than attention over one. So
 * each row gets the attention node that a decode step of one sequence runs. The nodes of a layer form a chain: each
 * takes the KV that the one before has written, in the same memory. All other nodes work on all rows at once, with one
 * reading of their weights. That gives the same bits where kernels compute a row beside others in the same way as
 * alone: those for floats and for 8-bit weights do, that for 4-bit weights on x64 does not (ONNX Runtime 1.30).
 *
 * Inputs and outputs are those of the decoder graph with batch 1, except that `seqlens_k` is int32 [rows], one for each
 * row, and that each row but the last has outputs of its own, `present.{layer}.key|value.row{row}`, to be bound to the
 * same memory as the past. `total_sequence_length` is ignored.
 */
import { type Field, field, fieldsOf, numberField } from './onnx.ts';

/** Tokens of a verify run, the newest one and its drafts. */
export const VERIFIED_ROWS = [2, 3, 4, 8] as const;

/** Field numbers of onnx.proto, and values of its enumerations. */
const MODEL_GRAPH = 7;
const GRAPH_NODE = 1;
const GRAPH_INITIALIZER = 5;
const GRAPH_OUTPUT = 12;
const NODE_INPUT = 1;
const NODE_OUTPUT = 2;
const NODE_NAME = 3;
const NODE_OPERATOR = 4;
const NODE_ATTRIBUTE = 5;
const ATTRIBUTE_INT = 2;
const TYPE_INT32 = 6;

const textOf = ({ content }: Field) => Buffer.from(content).toString();

/** A node: its names, and all else as it stands. */
interface RawNode {
  readonly operator: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** Operator, attributes, domain. */
  readonly rest: readonly Uint8Array[];
}

function nodeOf(content: Uint8Array): RawNode {
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

const nodeField = ({ inputs, outputs, rest }: Omit<RawNode, 'operator'>): Uint8Array =>
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
function attribute(name: string, value: number): Uint8Array {
  const [nameField, valueField, typeField] = [1, 3, 20];
  return field(
    NODE_ATTRIBUTE,
    Buffer.concat([field(nameField, name), numberField(valueField, value), numberField(typeField, ATTRIBUTE_INT)]),
  );
}

const node = (operator: string, inputs: readonly string[], outputs: readonly string[], ...attributes: Uint8Array[]) =>
  nodeField({ inputs, outputs, rest: [field(NODE_OPERATOR, operator), ...attributes] });

const split = (input: string, outputs: readonly string[], axis: number) =>
  node('Split', [input], outputs, attribute('axis', axis), attribute('num_outputs', outputs.length));

/** The int32 constant [1] with the value 1. */
function oneConstant(): Uint8Array {
  const [dims, dataType, name, rawData] = [1, 2, 8, 9];
  return field(
    GRAPH_INITIALIZER,
    Buffer.concat([
      numberField(dims, 1),
      numberField(dataType, TYPE_INT32),
      field(name, 'rows.one'),
      field(rawData, Uint8Array.of(1, 0, 0, 0)),
    ]),
  );
}

const rowNames = (name: string, rows: number) => Array.from({ length: rows }, (_, row) => `${name}.row${row}`);

/** Name of the output to which the attention of a row writes. @param name that of the last row's, `present.…`. */
export const presentOfRow = (name: string, row: number, rows: number) =>
  row === rows - 1 ? name : `${name}.row${row}`;

/** Attention row by row: divides the rows, runs one node after the other, and puts the rows together again. */
function attentionRows({ inputs, outputs, rest }: RawNode, rows: number): Uint8Array[] {
  const [query, key, value, pastKey, pastValue, lengths, , ...others] = inputs;
  const [mixed, presentKey, presentValue] = outputs as [string, string, string];
  const parts: Uint8Array[] = [];
  const divided = (name: string | undefined, part: string) => {
    if (!name) return () => '';
    const names = rowNames(`${mixed}.${part}`, rows);
    parts.push(split(name, names, 1));
    return (row: number) => names[row]!;
  };
  const [rowOfQuery, rowOfKey, rowOfValue] = [divided(query, 'query'), divided(key, 'key'), divided(value, 'value')];
  for (let row = 0; row < rows; row++) {
    const before = (name: string) => presentOfRow(name, row - 1, rows);
    const past = row === 0 ? [pastKey!, pastValue!] : [before(presentKey), before(presentValue)];
    const sizes = [`${lengths}.row${row}`, `rows.total.row${row}`];
    parts.push(
      nodeField({
        inputs: [rowOfQuery(row), rowOfKey(row), rowOfValue(row), ...past, ...sizes, ...others],
        outputs: [`${mixed}.row${row}`, presentOfRow(presentKey, row, rows), presentOfRow(presentValue, row, rows)],
        rest,
      }),
    );
  }
  return [...parts, node('Concat', rowNames(mixed, rows), [mixed], attribute('axis', 1))];
}

/** The graph's output, and after it one for each row but the last where it is a KV cache. */
function outputRows({ whole, content }: Field, rows: number): Uint8Array[] {
  const [nameField, ...rest] = fieldsOf(content);
  const name = textOf(nameField!);
  if (!name.startsWith('present.')) return [whole];
  const form = rest.map((each) => each.whole);
  const named = (row: number) => Buffer.concat([field(1, presentOfRow(name, row, rows)), ...form]);
  return [whole, ...Array.from({ length: rows - 1 }, (_, row) => field(GRAPH_OUTPUT, named(row)))];
}

/**
 * @param model a decoder graph, as {@link buildDecoder} and ONNX Runtime write it; its weights stay where they lie.
 * @param rows tokens of a run, at least 2.
 */
export function rowGraph(model: Uint8Array, rows: number): Uint8Array {
  const graphRows = (graph: Uint8Array) => {
    const parts: Uint8Array[] = [oneConstant(), split('seqlens_k', rowNames('seqlens_k', rows), 0)];
    for (const [row, length] of rowNames('seqlens_k', rows).entries()) {
      parts.push(node('Add', [length, 'rows.one'], [`rows.total.row${row}`]));
    }
    for (const each of fieldsOf(graph)) {
      const raw = each.number === GRAPH_NODE ? nodeOf(each.content) : undefined;
      if (raw?.operator === 'GroupQueryAttention') parts.push(...attentionRows(raw, rows));
      else if (each.number === GRAPH_OUTPUT) parts.push(...outputRows(each, rows));
      else parts.push(each.whole);
    }
    return Buffer.concat(parts);
  };
  return Buffer.concat(
    fieldsOf(model).map((each) =>
      each.number === MODEL_GRAPH ? field(MODEL_GRAPH, graphRows(each.content)) : each.whole,
    ),
  );
}
