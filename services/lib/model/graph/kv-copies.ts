/**
 * Small graphs that move KV within a device and across its border. A device offers no copy of a part of a tensor and no
 * address within one, so parts are copied by operators. A *tensor* here is K or V of one layer: `[slot, kv_head,
 * position, head_dim]`, or the same memory as `[cell, head_dim]`, one cell per slot, head and position.
 *
 * What is written is written in place: the output must be bound to the memory of the tensor that goes in.
 */
import { Graph, type Value } from './graph.ts';

type Floats = 'float32' | 'float16';

/**
 * Takes rows out: of each of `tensors` tensors `tensor.<i>` the part from `start.<i>` to `end.<i>`, each `[3]` = slot,
 * head, position. All parts come one after the other as `rows`: `[1, heads of all parts, positions, head_dim]`. One
 * run, and one transfer, of nothing but the rows.
 */
export function buildKvExport(tensors: number, floats: Floats): Graph {
  const graph = new Graph(floats);
  const axes = graph.int64('axes', [0, 1, 2]);
  const last = tensors === 1 ? 'rows' : undefined;
  const parts = Array.from({ length: tensors }, (_, i) => {
    const tensor = graph.input(`tensor.${i}`, floats, [`slots.${i}`, 'kv_heads', 'capacity', 'head_dim']);
    const start = graph.input(`start.${i}`, 'int64', [3]);
    const end = graph.input(`end.${i}`, 'int64', [3]);
    return graph.node('Slice', last ?? `part.${i}`, [tensor, start, end, axes]);
  });
  const rows = last ? (parts[0] as Value) : graph.node('Concat', 'rows', parts, { axis: 1 });
  graph.output(rows, floats, [1, 'rows', 'positions', 'head_dim']);
  return graph;
}

/**
 * Puts rows in: writes `rows.<i>` `[n, head_dim]` to the cells `cells.<i>` `[n, 1]` of each of `tensors` tensors
 * `tensor.<i>`, whose outputs are `written.<i>`.
 */
export function buildKvImport(tensors: number, floats: Floats): Graph {
  const graph = new Graph(floats);
  for (let i = 0; i < tensors; i++) {
    const tensor = graph.input(`tensor.${i}`, floats, [`tensor_cells.${i}`, 'head_dim']);
    const cells = graph.input(`cells.${i}`, 'int64', [`cells.${i}`, 1]);
    const rows = graph.input(`rows.${i}`, floats, [`cells.${i}`, 'head_dim']);
    const written = graph.node('ScatterND', `written.${i}`, [tensor, cells, rows]);
    graph.output(written, floats, [`tensor_cells.${i}`, 'head_dim']);
  }
  return graph;
}

/**
 * Copies the cells `source` `[n]` of each tensor `from.<i>` to the cells `target` `[n, 1]` of `to.<i>`, whose outputs
 * are `written.<i>`. All cells are read before any is written, so that `from` and `to` may be the same memory, and
 * cells may change places.
 */
export function buildKvCopy(tensors: number, floats: Floats): Graph {
  const graph = new Graph(floats);
  const source = graph.input('source', 'int64', ['cells']);
  const target = graph.input('target', 'int64', ['cells', 1]);
  for (let i = 0; i < tensors; i++) {
    const from = graph.input(`from.${i}`, floats, ['from_cells', 'head_dim']);
    const to = graph.input(`to.${i}`, floats, ['to_cells', 'head_dim']);
    const read = graph.node('Gather', `read.${i}`, [from, source], { axis: 0 });
    const written = graph.node('ScatterND', `written.${i}`, [to, target, read]);
    graph.output(written, floats, ['to_cells', 'head_dim']);
  }
  return graph;
}
