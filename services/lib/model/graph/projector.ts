/**
 * The LlavaCode projector: an MLP from the encoder's space into the language model's embedding space. Each layer except
 * the last is Linear, GELU (erf), LayerNorm. The last is a bare Linear.
 *
 * Input: `embeddings` float32 [n, encoder dim]. Output: `soft_tokens` float32 [n, hidden].
 */
import { ServingError } from '../../process/errors.ts';
import { expectTensor, type TensorSource } from '../checkpoint/checkpoint.ts';
import { Graph, type Value } from './graph.ts';
import { linear } from './linear.ts';

const NORM_EPS = 1e-5;

interface ProjectorSpec {
  /** Widths from the encoder's to the language model's: [E, hidden, hidden] or [E, 2 × hidden, 2 × hidden, hidden]. */
  readonly widths: readonly number[];
}

/** Names of the tensors of layer `i` (from 0), without `.weight` or `.bias`. */
interface Naming {
  readonly linear: (i: number) => string;
  readonly norm: (i: number) => string;
}

/**
 * `linear_1`, `ln_1`, `linear_2` … (as the authors save them), `linear1`, `ln1` …; or the numbers that
 * torch.nn.Sequential gives to Linear, GELU, LayerNorm, Linear …: `0`, `2`, `3` …, alone or within `layers`, `mlp` or
 * `net`.
 */
const NAMINGS: readonly Naming[] = [
  ...['_', ''].map((mark) => ({
    linear: (i: number) => `linear${mark}${i + 1}`,
    norm: (i: number) => `ln${mark}${i + 1}`,
  })),
  ...['', 'layers.', 'mlp.', 'net.'].map((list) => ({
    linear: (i: number) => `${list}${3 * i}`,
    norm: (i: number) => `${list}${3 * i + 2}`,
  })),
];
/** Prefixes of the names, from a bare projector file to a training checkpoint. */
const PREFIXES = ['', 'projector.', 'multi_modal_projector.', 'model.multi_modal_projector.', 'module.'];

/** Number of trainable parameters, including biases and norms. */
export function projectorParameters({ widths }: ProjectorSpec): number {
  let sum = 0;
  for (let i = 0; i + 1 < widths.length; i++) {
    const [from, to] = [widths[i]!, widths[i + 1]!];
    sum += from * to + to;
    if (i + 2 < widths.length) sum += 2 * to;
  }
  return sum;
}

const invalid = (source: TensorSource, what: string) =>
  new ServingError('projector_invalid', `${source.origin}: ${what}`);

function findNaming(source: TensorSource): Naming {
  for (const prefix of PREFIXES) {
    for (const { linear: linearName, norm } of NAMINGS) {
      if (source.shapeOf(`${prefix}${linearName(0)}.weight`)) {
        return { linear: (i) => prefix + linearName(i), norm: (i) => prefix + norm(i) };
      }
    }
  }
  throw invalid(
    source,
    'holds no projector: none of linear_1.weight, linear1.weight, 0.weight, layers.0.weight, mlp.0.weight, net.0.weight',
  );
}

/**
 * The projector that a checkpoint holds.
 * @throws ServingError projector_invalid if it holds none, or one that does not have 2 or 3 layers that fit together.
 */
export function readProjectorSpec(source: TensorSource): ProjectorSpec {
  const naming = findNaming(source);
  const widths: number[] = [];
  for (let i = 0; ; i++) {
    const shape = source.shapeOf(`${naming.linear(i)}.weight`);
    if (!shape) break;
    const [to, from] = shape;
    if (shape.length !== 2 || to === undefined || from === undefined) {
      throw invalid(source, `${naming.linear(i)}.weight is [${shape}], not a matrix`);
    }
    if (i === 0) widths.push(from);
    else if (from !== widths[i]) {
      throw invalid(
        source,
        `${naming.linear(i)}.weight is [${shape}] but the layer before it gives ${widths[i]} values`,
      );
    }
    widths.push(to);
  }
  if (widths.length !== 3 && widths.length !== 4) {
    throw invalid(source, `has ${widths.length - 1} linear layers: projectors of 2 and 3 layers are supported`);
  }
  return { widths };
}

/**
 * @throws ServingError projector_invalid if the projector does not lead from this encoder to this language model.
 */
export function assertProjectorFits(
  source: TensorSource,
  { widths }: ProjectorSpec,
  encoderDim: number,
  hidden: number,
): void {
  if (widths[0] === encoderDim && widths.at(-1) === hidden) return;
  throw invalid(
    source,
    `projects [n, ${widths[0]}] to [n, ${widths.at(-1)}], but the encoder gives [n, ${encoderDim}] and the language model takes [n, ${hidden}]`,
  );
}

/**
 * @throws ServingError projector_invalid; checkpoint_invalid for a bias or norm that is missing or has a wrong shape.
 */
export function buildProjector(source: TensorSource): Graph {
  const { widths } = readProjectorSpec(source);
  const naming = findNaming(source);
  const graph = new Graph();
  let value: Value = graph.input('embeddings', 'float32', ['n', widths[0]!]);
  const last = widths.length - 2;
  for (let i = 0; i <= last; i++) {
    const [columns, rows] = [widths[i]!, widths[i + 1]!];
    const name = naming.linear(i);
    value = linear(
      graph,
      value,
      {
        name: i === last ? 'soft_tokens' : `linear_${i + 1}`,
        rows,
        columns,
        read: expectTensor(source, `${name}.weight`, [rows, columns]),
        bias: expectTensor(source, `${name}.bias`, [rows]),
      },
      'fp32',
    );
    if (i === last) break;
    const activated = graph.node('Gelu', `gelu_${i + 1}`, [value]);
    const norm = ['weight', 'bias'].map((part) =>
      graph.weight(`ln_${i + 1}.${part}`, [rows], expectTensor(source, `${naming.norm(i)}.${part}`, [rows])),
    );
    value = graph.node('LayerNormalization', `ln_${i + 1}`, [activated, ...norm], { axis: -1, epsilon: NORM_EPS });
  }
  graph.output(value, 'float32', ['n', widths.at(-1)!]);
  return graph;
}
