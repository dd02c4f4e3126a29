/**
 * The bandwidth and the arithmetic that a device reaches with the runtime's own kernels: what the other figures can be
 * held against. Each is measured by two graphs that differ only in the length of a chain of equal operators; the
 * difference of their times, divided by the difference in length, has neither launch nor transfer of the run in it.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { OrtSession, type SessionOptions } from '../../services/lib/engine/ort.ts';
import { Graph, type Value } from '../../services/lib/model/graph/graph.ts';
import { writeModel } from '../../services/lib/model/graph/onnx.ts';

/** Operators of the shorter and of the longer chain. */
const CHAINS = [4, 20] as const;
/** Runs of each graph; the fastest counts, because everything that disturbs makes a run slower. */
const RUNS = 5;

export interface Roofline {
  /** Bytes per second, read and written together. */
  readonly bandwidth: number;
  /** Floating-point operations per second of a matrix product, by the type that it computes in. */
  readonly flops: Readonly<Partial<Record<'float32' | 'float16', number>>>;
}

/** @param size rows and columns of the square matrices. */
export async function measureRoofline(
  options: SessionOptions,
  size: { readonly copy: number; readonly product: number },
  floats: readonly ('float32' | 'float16')[],
): Promise<Roofline> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-roofline-'));
  try {
    const addMs = await msPerOperator(dir, options, 'float32', size.copy, (graph, value, name) =>
      graph.node('Add', name, [value, graph.scalar(`${name}.one`, 1)]),
    );
    const flops: Partial<Record<'float32' | 'float16', number>> = {};
    for (const type of floats) {
      const productMs = await msPerOperator(dir, options, type, size.product, (graph, value, name, first) =>
        graph.node('Gemm', name, [value, first], { transB: 1 }),
      );
      flops[type] = (2 * size.product ** 3 * 1000) / productMs;
    }
    return { flops, bandwidth: (2 * 4 * size.copy ** 2 * 1000) / addMs };
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

type Operator = (graph: Graph, value: Value, name: string, first: Value) => Value;

async function msPerOperator(
  dir: string,
  options: SessionOptions,
  floats: 'float32' | 'float16',
  size: number,
  operator: Operator,
): Promise<number> {
  const times: number[] = [];
  for (const length of CHAINS) {
    const path = await mkdtemp(join(dir, 'graph-'));
    await writeModel(chain(floats, size, length, operator), path);
    times.push(await fastestRun(join(path, 'model.onnx'), options, size));
  }
  const [short, long] = times as [number, number];
  // On a machine that is busy the longer chain may come out faster by chance; the whole of it is then a safe bound.
  return long > short ? (long - short) / (CHAINS[1] - CHAINS[0]) : long / CHAINS[1];
}

/** `[size, size]` out of a column and a row that are fed, through the chain, to its largest element: the output. */
function chain(floats: 'float32' | 'float16', size: number, length: number, operator: Operator): Graph {
  const graph = new Graph(floats);
  const fed = (name: string, dims: readonly number[]) => {
    const input = graph.input(name, 'float32', dims);
    return floats === 'float32' ? input : graph.node('Cast', `${name}.half`, [input], { to: 'float16' });
  };
  const first = graph.node('Mul', 'first', [fed('column', [size, 1]), fed('row', [1, size])]);
  let value = first;
  for (let i = 0; i < length; i++) value = operator(graph, value, `chain${i}`, first);
  const largest = graph.node('ReduceMax', 'largest', [value]);
  const out = floats === 'float32' ? largest : graph.node('Cast', 'out', [largest], { to: 'float32' });
  graph.output(out, 'float32', [1, 1]);
  return graph;
}

async function fastestRun(path: string, options: SessionOptions, size: number): Promise<number> {
  const session = await OrtSession.load(path, options);
  try {
    // Every element of the matrix is 1/size, so that products keep their size: 16-bit floats would overflow.
    const filled = (dims: readonly number[]) => ({
      type: 'float32' as const,
      dims,
      data: new Float32Array(size).fill(1 / Math.sqrt(size)),
    });
    const inputs = { column: filled([size, 1]), row: filled([1, size]) };
    let fastest = Number.POSITIVE_INFINITY;
    // The first run compiles and allocates; it is not the fastest.
    for (let run = 0; run <= RUNS; run++) {
      const startMs = performance.now();
      await session.run(inputs);
      fastest = Math.min(fastest, performance.now() - startMs);
    }
    return fastest;
  } finally {
    session.dispose();
  }
}
