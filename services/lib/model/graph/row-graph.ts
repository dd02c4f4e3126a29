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
import { type Field, field, fieldsOf } from './onnx.ts';
import {
  attribute,
  constant,
  GRAPH_NODE,
  GRAPH_OUTPUT,
  node,
  nodeField,
  nodeOf,
  type RawNode,
  textOf,
  withGraph,
} from './raw-graph.ts';

/** Tokens of a verify run, the newest one and its drafts. */
export const VERIFIED_ROWS = [2, 3, 4, 8] as const;

const split = (input: string, outputs: readonly string[], axis: number) =>
  node('Split', [input], outputs, attribute('axis', axis), attribute('num_outputs', outputs.length));

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
  return withGraph(model, (fields) => {
    const one = constant('rows.one', 'int32', [1], Uint8Array.of(1, 0, 0, 0));
    const parts: Uint8Array[] = [one, split('seqlens_k', rowNames('seqlens_k', rows), 0)];
    for (const [row, length] of rowNames('seqlens_k', rows).entries()) {
      parts.push(node('Add', [length, 'rows.one'], [`rows.total.row${row}`]));
    }
    for (const each of fields) {
      const raw = each.number === GRAPH_NODE ? nodeOf(each.content) : undefined;
      if (raw?.operator === 'GroupQueryAttention') parts.push(...attentionRows(raw, rows));
      else if (each.number === GRAPH_OUTPUT) parts.push(...outputRows(each, rows));
      else parts.push(each.whole);
    }
    return parts;
  });
}
