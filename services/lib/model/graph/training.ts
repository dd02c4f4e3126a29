/**
 * The language model's graph for the training of a projector: forward through the decoder's own layers, and backward to
 * the soft tokens. The model is frozen, so no gradient of a weight is computed. One graph serves all losses of tokens:
 *
 *   loss = -Σ weight · log p(target) + Σ kl weight · Σ q (log q - log p), over the scored rows; q is the teacher's.
 *
 * Cross-entropy has weight α / T for each of T targets; REINFORCE has α · reward for each token of a rollout. With
 * `joint`, both share one pass: the rollout follows the target in the rows, but has the target's positions and does not
 * see it. That takes 0.59 of the time of two passes (tiny-coder, 510 + 40 + 50 tokens).
 *
 * Inputs: `input_ids` int64 [1, sequence] · `soft_tokens` float32 [soft, hidden] · `soft_positions` int64 [soft] ·
 * `rows` int64 [rows], the positions whose logits are scored; a position may stand twice · `targets` int64 [rows].
 * With `backward`: `weights` float32 [rows].
 * With `joint`: `position_ids` int64 [1, sequence] · `attention_bias` float32 [1, 1, sequence, sequence].
 * With `kl`: `teacher_logp` float32 [rows, vocab] · `kl_weights` float32 [rows].
 * Outputs: `token_logp` float32 [rows], log p(target). With `backward`: `soft_gradient` float32 [soft, hidden], of the
 * loss. With `kl`: `kl` float32 [rows]. With `logp`: `logp` float32 [rows, vocab].
 */
import { expectTensor, type TensorSource } from '../checkpoint/checkpoint.ts';
import type { DecoderSpec } from '../checkpoint/spec.ts';
import { differentiate } from './gradient.ts';
import type { BackwardFormat } from './gradient-rules.ts';
import { Graph, type Node, type Value } from './graph.ts';
import { type LayerFormats, lookUp, multiply, storeMatrix } from './linear.ts';
import { NodeBuilder } from './node-builder.ts';
import { Transformer, tensorPrefix } from './transformer.ts';

interface TrainingFormat {
  /** How the forward pass stores the frozen layers. The vocabulary stays in 32-bit floats. */
  readonly layers: LayerFormats;
  /** How the backward pass multiplies by layers that are quantised; those in 32-bit floats are the same in both. */
  readonly backwardLayers?: BackwardFormat;
  /** Positions in the rotation tables: no pass may have more rows, also where positions stand twice. */
  readonly maxPositions: number;
  /** Whether the graph computes the gradient; without it, it scores targets. */
  readonly backward: boolean;
  /** Whether positions and visibility of rows are inputs. */
  readonly joint?: boolean;
  /** Whether a teacher's distribution is an input (knowledge distillation). */
  readonly kl?: boolean;
  /** Whether the log-probabilities of all tokens are an output: a teacher's graph. */
  readonly logp?: boolean;
  /** Computes the activations of each layer again for its backward pass, instead of keeping them. */
  readonly recompute?: boolean;
  /** Uses only operators that WebGPU has, apart from arithmetic on shapes; on the CPU they are slower. */
  readonly plain?: boolean;
}

/** A segment of activations that are computed again ends with the norm before a layer. */
const endsLayer = ({ outputs }: Node) => /^layers\.\d+\.input_layernorm\.normed$/.test(outputs[0]!);

/** @throws ServingError checkpoint_invalid for a tensor that is missing or has the wrong shape. */
export function buildTraining(spec: DecoderSpec, source: TensorSource, format: TrainingFormat): Graph {
  const graph = new Graph();
  const b = new NodeBuilder(graph, 'loss');
  const { hidden, vocab } = spec;
  const soft = graph.input('soft_tokens', 'float32', ['soft', hidden]);
  const rows = graph.input('rows', 'int64', ['rows']);
  const targets = graph.input('targets', 'int64', ['rows']);
  const prefix = tensorPrefix(source);
  const matrix = (name: string, tensor: string) =>
    ({ name, rows: vocab, columns: hidden, read: expectTensor(source, tensor, [vocab, hidden]) }) as const;
  const embed = matrix('embed', `${prefix}embed_tokens.weight`);
  const table = storeMatrix(graph, embed, 'fp32', spec.tied ? 'both' : 'lookUp');
  const head = spec.tied ? table : storeMatrix(graph, matrix('lm_head', 'lm_head.weight'), 'fp32', 'both');
  const final = scoredRows(b, spec, source, format, (ids) => lookUp(graph, 'ids.embedded', ids, table), soft, rows);

  const logits = multiply(graph, 'logits', final, head);
  const logp = logSoftmax(b, logits, format.plain);
  const picked = b.op('GatherElements', [logp, b.unsqueeze(targets, 1)], { axis: 1 });
  graph.output(graph.node('Squeeze', 'token_logp', [picked, b.int64([1])]), 'float32', ['rows']);
  if (format.logp) graph.output(logp, 'float32', ['rows', vocab]);
  if (!format.backward) return graph;

  // The gradient at the logits is Σ over the losses of weight · (p - wanted distribution). The product of a one-hot
  // target with the head is a row of the head, so it is looked up.
  const column = b.unsqueeze(graph.input('weights', 'float32', ['rows']), 1);
  const p = b.op('Exp', [logp]);
  let mass = b.mul(p, column);
  if (format.kl) mass = b.add(mass, kullbackLeibler(b, logp, p, vocab));
  const headWeight = head.kind === 'table' ? head.weight : undefined;
  const targetRows = b.op('Gather', [headWeight, targets], { axis: 0 });
  const seed = b.sub(b.op('Gemm', [mass, headWeight]), b.mul(targetRows, column));
  const gradients = differentiate(graph, {
    seeds: new Map([[final, seed]]),
    wrt: [soft],
    backward: format.backwardLayers,
    endsSegment: format.recompute ? endsLayer : undefined,
    fusesProducts: !format.plain,
  });
  graph.output(graph.node('Identity', 'soft_gradient', [gradients.get(soft)]), 'float32', ['soft', hidden]);
  return graph;
}

/** `logp`, log p of [rows, vocab]. @param plain see TrainingFormat */
function logSoftmax(b: NodeBuilder, logits: Value, plain: boolean | undefined): Value {
  const { graph } = b;
  if (!plain) return graph.node('LogSoftmax', 'logp', [logits], { axis: -1 });
  const below = b.sub(logits, b.op('ReduceMax', [logits, b.int64([-1])]));
  return graph.node('Sub', 'logp', [below, b.op('Log', [b.sumLast(b.op('Exp', [below]))])]);
}

/** The decoder's layers from token ids and soft tokens to the normalised rows that are scored: [rows, hidden]. */
function scoredRows(
  b: NodeBuilder,
  spec: DecoderSpec,
  source: TensorSource,
  { layers, maxPositions, joint }: TrainingFormat,
  embed: (ids: Value) => Value,
  soft: Value,
  rows: Value,
): Value {
  const { graph } = b;
  const ids = graph.input('input_ids', 'int64', [1, 'sequence']);
  const softPositions = graph.input('soft_positions', 'int64', ['soft']);
  const embedded = embed(b.reshape(ids, [-1]));
  const flat = b.op('ScatterND', [embedded, b.unsqueeze(softPositions, 1), soft]);
  const embeddings = b.reshape(flat, [1, -1, spec.hidden]);
  const sequence = b.shape(ids, 1, 2);
  const attention = {
    lastPositions: b.cast(b.sub(sequence, b.int64([1])), 'int32'),
    totalPositions: b.cast(b.op('Squeeze', [sequence]), 'int32'),
    maxPositions,
    present: () => ['', ''] as const,
    rotation: joint
      ? {
          positionIds: graph.input('position_ids', 'int64', [1, 'sequence']),
          attentionBias: graph.input('attention_bias', 'float32', [1, 1, 'sequence', 'sequence']),
        }
      : { positionIds: b.int64([0]) },
  };
  const kept = new Transformer(graph, spec, source, layers).apply(embeddings, attention, (value, name) =>
    graph.node('Gather', name, [value, rows], { axis: 1 }),
  );
  return b.reshape(kept, [-1, spec.hidden]);
}

/**
 * Makes `kl` an output: Σ q (log q - log p) of each row.
 * @returns its weighted gradient at the logits, [rows, vocab]
 */
function kullbackLeibler(b: NodeBuilder, logp: Value, p: Value, vocab: number): Value {
  const { graph } = b;
  const teacher = graph.input('teacher_logp', 'float32', ['rows', vocab]);
  const weights = b.unsqueeze(graph.input('kl_weights', 'float32', ['rows']), 1);
  const q = b.op('Exp', [teacher]);
  const terms = b.mul(q, b.sub(teacher, logp));
  graph.output(graph.node('ReduceSum', 'kl', [terms, b.int64([-1])], { keepdims: 0 }), 'float32', ['rows']);
  return b.mul(b.sub(p, q), weights);
}
