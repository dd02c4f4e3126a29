/**
 * The projector's graph for one step of the optimiser: forward, the alignment loss, and backward to every tensor. One
 * run serves all samples of a batch, whose rows lie one after the other: n = samples × k, with k soft tokens each.
 *
 * The alignment loss compares the pairwise cosines of a sample's k projected rows with those of its k embeddings, in
 * one of two forms: `frobenius`, (1/√2) · the Frobenius norm of the difference (the paper's equation 3), or `mse`, the
 * mean of its squares (the authors' code). At weight 0.1 the first kept tiny-coder's projections apart (mean cosine
 * 0.66) where the second let them collapse (0.88): one run of each with one seed, on 45 lines.
 *
 * Inputs: `embeddings` float32 [n, encoder dim] · each tensor of the projector under its name · `soft_gradient` float32
 * [n, hidden], the gradient that the language model's losses give the soft tokens · `alignment_weight` float32 scalar.
 * Outputs: `gradient.NAME` for each tensor, of the language model's losses + weight · alignment · `alignment` float32
 * scalar, the mean over samples, not weighted.
 */
import { differentiate } from './gradient.ts';
import { Graph, type Value } from './graph.ts';
import { NodeBuilder } from './node-builder.ts';
import { applyProjector, type ProjectorSpec, projectorShapes } from './projector.ts';

export type AlignmentForm = 'frobenius' | 'mse';

/** @param softTokens k, the number of soft tokens of each sample. */
export function buildProjectorTraining(spec: ProjectorSpec, softTokens: number, form: AlignmentForm): Graph {
  const graph = new Graph();
  const b = new NodeBuilder(graph, 'alignment_loss');
  const hidden = spec.widths.at(-1)!;
  const { embeddings, projected, parameters } = trainableProjector(graph, spec);
  const fromModel = graph.input('soft_gradient', 'float32', ['n', hidden]);
  const weight = graph.input('alignment_weight', 'float32', []);
  const { loss, gradient } = alignment(b, embeddings, projected, spec, softTokens, form);
  graph.output(graph.node('Identity', 'alignment', [loss]), 'float32', []);
  const seed = b.add(fromModel, b.mul(gradient, weight));
  const wrt = [...parameters.values()];
  const gradients = differentiate(graph, { seeds: new Map([[projected, seed]]), wrt });
  for (const [name, shape] of projectorShapes(spec)) {
    const value = gradients.get(parameters.get(name)!);
    graph.output(graph.node('Identity', `gradient.${name}`, [value]), 'float32', shape);
  }
  return graph;
}

/**
 * The forward pass alone, with the projector's tensors as inputs.
 * Inputs: `embeddings` and the tensors. Output: `soft_tokens` float32 [n, hidden].
 */
export function buildTrainableProjector(spec: ProjectorSpec): Graph {
  const graph = new Graph();
  graph.output(trainableProjector(graph, spec).projected, 'float32', ['n', spec.widths.at(-1)!]);
  return graph;
}

function trainableProjector(graph: Graph, spec: ProjectorSpec) {
  const shapes = projectorShapes(spec);
  const parameters = new Map([...shapes].map(([name, shape]) => [name, graph.input(name, 'float32', shape)]));
  const embeddings = graph.input('embeddings', 'float32', ['n', spec.widths[0]!]);
  const projected = applyProjector(graph, spec, embeddings, (name) => parameters.get(name)!);
  return { embeddings, projected, parameters };
}

/** The loss, a scalar, and its gradient at the projected rows, [n, hidden]; both are means over the samples. */
function alignment(
  b: NodeBuilder,
  embeddings: Value,
  projected: Value,
  { widths }: ProjectorSpec,
  k: number,
  form: AlignmentForm,
): { loss: Value; gradient: Value } {
  const unit = (rows: Value, width: number) => {
    const blocks = b.reshape(rows, [-1, k, width]);
    // The lower bound keeps a row of zeros from being divided by zero.
    const norm = b.op('Max', [b.op('Sqrt', [b.sumLast(b.mul(blocks, blocks))]), b.scalar(1e-20)]);
    return { units: b.div(blocks, norm), norm };
  };
  const cosines = (units: Value) => b.op('FusedMatMul', [units, units], { transB: 1 });
  const encoded = unit(embeddings, widths[0]!);
  const { units, norm } = unit(projected, widths.at(-1)!);
  const difference = b.sub(cosines(units), cosines(encoded.units));
  const samples = b.cast(b.op('Squeeze', [b.shape(units, 0, 1)]), 'float32');
  const squares = b.op('ReduceSum', [b.mul(difference, difference), b.int64([1, 2])], { keepdims: 1 });
  const { loss, dDifference } =
    form === 'mse'
      ? {
          loss: b.mul(squares, b.scalar(1 / (k * k))),
          dDifference: b.mul(difference, b.scalar(2 / (k * k))),
        }
      : frobenius(b, difference, squares);
  // Rows and columns of the cosines are both the units, and the difference is symmetric: twice its product with them.
  const dUnits = b.mul(b.op('MatMul', [dDifference, units]), b.scalar(2));
  const along = b.mul(units, b.sumLast(b.mul(dUnits, units)));
  const dRows = b.div(b.sub(dUnits, along), norm);
  return { loss: b.div(b.sumAll(loss), samples), gradient: b.div(b.reshapeLike(dRows, projected), samples) };
}

/** √(squares / 2), whose gradient is difference / (2 · loss); where the loss is 0, it is taken as 0. */
function frobenius(b: NodeBuilder, difference: Value, squares: Value): { loss: Value; dDifference: Value } {
  const loss = b.op('Sqrt', [b.mul(squares, b.scalar(0.5))]);
  const divisor = b.op('Max', [b.mul(loss, b.scalar(2)), b.scalar(1e-20)]);
  return { loss, dDifference: b.div(difference, divisor) };
}
