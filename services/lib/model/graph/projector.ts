/**
 * The LlavaCode projector: an MLP from the encoder's space into the language model's embedding space. Each layer except
 * the last is Linear, GELU (erf), LayerNorm. The last is a bare Linear.
 *
 * Input: `embeddings` float32 [n, encoder dim]. Output: `soft_tokens` float32 [n, hidden].
 */
import { ServingError, withRemedy } from '../../process/errors.ts';
import { Checkpoint, expectTensor, type TensorSource } from '../checkpoint/checkpoint.ts';
import { Graph, type Value } from './graph.ts';

const NORM_EPS = 1e-5;

export interface ProjectorSpec {
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

/** Names and shapes of a projector's tensors, spelled as the authors save them, in the order of the layers. */
export function projectorShapes({ widths }: ProjectorSpec): Map<string, readonly number[]> {
  const shapes = new Map<string, readonly number[]>();
  const last = widths.length - 2;
  for (let i = 0; i <= last; i++) {
    const [from, to] = [widths[i]!, widths[i + 1]!];
    shapes.set(`linear_${i + 1}.weight`, [to, from]);
    shapes.set(`linear_${i + 1}.bias`, [to]);
    if (i === last) break;
    shapes.set(`ln_${i + 1}.weight`, [to]);
    shapes.set(`ln_${i + 1}.bias`, [to]);
  }
  return shapes;
}

/** Number of trainable parameters, including biases and norms. */
export function projectorParameters(spec: ProjectorSpec): number {
  const sizes = [...projectorShapes(spec).values()].map((shape) => shape.reduce((product, size) => product * size, 1));
  return sizes.reduce((sum, size) => sum + size, 0);
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
 * @throws ServingError projector_invalid if it holds none, or one that does not have 2 to 4 layers that fit together.
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
  if (widths.length < 3 || widths.length > 5) {
    throw invalid(source, `has ${widths.length - 1} linear layers: projectors of 2 to 4 layers are supported`);
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
    `projects [n, ${widths[0]}] to [n, ${widths.at(-1)}], but the encoder gives [n, ${encoderDim}] and the ` +
      `language model takes [n, ${hidden}]`,
  );
}

/** The name that a checkpoint has for a tensor of {@link projectorShapes}. */
function storedName(naming: Naming, name: string): string {
  const [layer, part] = name.split('.') as [string, string];
  const i = Number(/\d+$/.exec(layer)![0]) - 1;
  return `${layer.startsWith('ln') ? naming.norm(i) : naming.linear(i)}.${part}`;
}

const OPEN_REMEDY =
  'If llavacode train wrote it, give its command again, which writes it anew; otherwise download it again, or correct ' +
  'the path.';

/** Opens the file or the folder of a projector. @throws ServingError checkpoint_invalid */
export const openProjector = (path: string): Promise<Checkpoint> =>
  withRemedy('checkpoint_invalid', OPEN_REMEDY, () => Checkpoint.open(path));

/**
 * The values of a projector, by the names of {@link projectorShapes}.
 * @throws ServingError projector_invalid; checkpoint_invalid for a tensor that is missing or has a wrong shape.
 */
export async function readProjector(source: TensorSource, spec: ProjectorSpec): Promise<Map<string, Float32Array>> {
  const naming = findNaming(source);
  const values = new Map<string, Float32Array>();
  for (const [name, shape] of projectorShapes(spec)) {
    values.set(name, await expectTensor(source, storedName(naming, name), shape)());
  }
  return values;
}

/**
 * @throws ServingError projector_invalid; checkpoint_invalid for a bias or norm that is missing or has a wrong shape.
 */
export function buildProjector(source: TensorSource): Graph {
  const { widths } = readProjectorSpec(source);
  const naming = findNaming(source);
  const graph = new Graph();
  const embeddings = graph.input('embeddings', 'float32', ['n', widths[0]!]);
  const softTokens = applyProjector(graph, { widths }, embeddings, (name, shape) => {
    // The output gives the last layer its name.
    const declared = name.replace(`linear_${widths.length - 1}.`, 'soft_tokens.');
    return graph.weight(declared, shape, expectTensor(source, storedName(naming, name), shape));
  });
  graph.output(softTokens, 'float32', ['n', widths.at(-1)!]);
  return graph;
}

/**
 * Adds the projector's layers: [n, encoder dim] → `soft_tokens` [n, hidden].
 * @param parameter gives each tensor of {@link projectorShapes}
 */
export function applyProjector(
  graph: Graph,
  { widths }: ProjectorSpec,
  embeddings: Value,
  parameter: (name: string, shape: readonly number[]) => Value,
): Value {
  const last = widths.length - 2;
  let value = embeddings;
  for (let i = 0; i <= last; i++) {
    const [columns, rows] = [widths[i]!, widths[i + 1]!];
    const bias = parameter(`linear_${i + 1}.bias`, [rows]);
    const weight = parameter(`linear_${i + 1}.weight`, [rows, columns]);
    const name = i === last ? 'soft_tokens' : `linear_${i + 1}`;
    value = graph.node('Gemm', name, [value, weight, bias], { transB: 1 });
    if (i === last) break;
    const activated = graph.node('Gelu', `gelu_${i + 1}`, [value]);
    const norm = ['weight', 'bias'].map((part) => parameter(`ln_${i + 1}.${part}`, [rows]));
    value = graph.node('LayerNormalization', `ln_${i + 1}`, [activated, ...norm], { axis: -1, epsilon: NORM_EPS });
  }
  return value;
}
