/**
 * Graphs with 32-bit KV, made of a decoder graph whose KV lies in int8 (decoder.ts).
 *
 * Attention of a decode step takes a tenth to a fifth less CPU time with int8 KV than with floats. That of a prompt
 * chunk takes four times as much (ONNX Runtime 1.30 on AVX2; docs/adr/0008), because its kernel widens each value again
 * for every query. So chunks are computed by the *prompt graph*: attention over floats, after keys and values have been
 * rounded to multiples of their scales. A chunk then attends to the same numbers whether it computed them itself or
 * they were widened from a slot: neither how a prompt is divided matters, nor how much of it was computed before.
 *
 * Inputs and outputs of the prompt graph are those of the decoder graph with batch 1, except that `past` and `present`
 * are float32, that `first_position` int64 [1] says the position of the first token, and that scales have the shape
 * [kv_heads × head_dim].
 */
import { type Field, field } from './onnx.ts';
import {
  attribute,
  constant,
  GRAPH_INPUT,
  GRAPH_NODE,
  GRAPH_OUTPUT,
  nameOf,
  node,
  nodeField,
  nodeOf,
  numberOf,
  type RawNode,
  runtimeNode,
  valueInfo,
  withGraph,
  withoutAttributes,
} from './raw-graph.ts';

/** The part of a KV layout that the graphs have in their shapes. */
interface CacheShape {
  readonly kvHeads: number;
  readonly headDim: number;
}

/** The largest level; the least is its negative, so that scales need no zero point. */
export const MOST_LEVEL = 127;

/** The input with the position of a chunk's first token. */
export const FIRST_POSITION = 'first_position';
const QUANTIZATION = ['k_quant_type', 'v_quant_type', 'kv_cache_bit_width'];
/** Places of the scales of keys and values among the inputs of attention. */
const SCALES = [12, 14] as const;

/** Name of the input with the scales of a layer's keys or values. */
export const scaleInput = (layer: number, part: 'key' | 'value') => `kv_scale.${layer}.${part}`;

const floatScalar = (name: string, value: number) =>
  constant(name, 'float32', [], new Uint8Array(Float32Array.of(value).buffer));

/** Rounds to levels and back: a value becomes the nearest multiple of its scale, of the largest level at most. */
const rounded = (value: string, scale: string, to: string) => [
  node('Div', [value, scale], [`${to}.scaled`]),
  node('Round', [`${to}.scaled`], [`${to}.nearest`]),
  node('Clip', [`${to}.nearest`, 'kv.least', 'kv.most'], [`${to}.level`]),
  node('Mul', [`${to}.level`, scale], [to]),
];

/** Rotation, rounding, attention over floats: what the attention over levels does by itself. */
function roundedAttention(raw: RawNode, headDim: number): Uint8Array[] {
  const { inputs, outputs } = raw;
  const [packed, ownKey, ownValue, pastKey, pastValue, lengths, total, cos, sin] = inputs as string[];
  const [keyScale, valueScale] = inputs.slice(...SCALES);
  const [heads, kvHeads] = [numberOf(raw, 'num_heads'), numberOf(raw, 'kv_num_heads')];
  const named = (part: string) => `${outputs[0]!}.${part}`;
  const [query, key, value] = ownKey ? [packed!, ownKey, ownValue!] : [named('query'), named('key'), named('value')];
  const sizes = BigInt64Array.from([heads, kvHeads, kvHeads].map((count) => BigInt(count * headDim)));
  const split = [
    constant(named('sizes'), 'int64', [3], new Uint8Array(sizes.buffer)),
    node('Split', [packed!, named('sizes')], [query, key, value], attribute('axis', 2)),
  ];
  const rotated = (part: string, to: string, count: number) =>
    runtimeNode(
      'RotaryEmbedding',
      [part, FIRST_POSITION, cos!, sin!],
      [to],
      attribute('interleaved', 0),
      attribute('num_heads', count),
    );
  const [queries, keys, values] = [named('query_rotated'), named('key_rounded'), named('value_rounded')];
  return [
    ...(ownKey ? [] : split),
    rotated(query, queries, heads),
    rotated(key, named('key_rotated'), kvHeads),
    ...rounded(named('key_rotated'), keyScale!, keys),
    ...rounded(value, valueScale!, values),
    nodeField({
      inputs: [queries, keys, values, pastKey!, pastValue!, lengths!, total!],
      outputs,
      rest: [
        ...withoutAttributes(raw, [...QUANTIZATION, 'do_rotary', 'rotary_interleaved']),
        attribute('do_rotary', 0),
      ],
    }),
  ];
}

/** The attention of the same node with KV of floats, as a graph without levels has it. */
const floatAttention = (raw: RawNode) => [
  nodeField({ inputs: raw.inputs.slice(0, 9), outputs: raw.outputs, rest: withoutAttributes(raw, QUANTIZATION) }),
];

interface Change {
  /** Makes the nodes of a layer's attention of its node. */
  readonly attention: (raw: RawNode) => readonly Uint8Array[];
  /** Shape of the scales of a layer's keys or values; undefined leaves them out. */
  readonly scales?: readonly number[];
  /** Inputs and constants that the graph gets. */
  readonly added?: readonly Uint8Array[];
}

/** The decoder with float32 KV. */
function floatKv(model: Uint8Array, { kvHeads, headDim }: CacheShape, { attention, scales, added = [] }: Change) {
  const changed = ({ number, whole, content }: Field): readonly Uint8Array[] => {
    if (number === GRAPH_NODE) {
      const raw = nodeOf(content);
      return raw.operator === 'GroupQueryAttention' ? attention(raw) : [whole];
    }
    if (number !== GRAPH_INPUT && number !== GRAPH_OUTPUT) return [whole];
    const name = nameOf(content);
    if (/^(past|present)\./.test(name)) {
      return [field(number, valueInfo(name, 'float32', ['batch', kvHeads, 'capacity', headDim]))];
    }
    if (!name.startsWith('kv_scale.')) return [whole];
    return scales ? [field(number, valueInfo(name, 'float32', scales))] : [];
  };
  return withGraph(model, (fields) => [...added, ...fields.flatMap(changed)]);
}

/** @param model a decoder graph with int8 KV, as {@link buildDecoder} and ONNX Runtime write it. */
export const promptGraph = (model: Uint8Array, shape: CacheShape): Uint8Array =>
  floatKv(model, shape, {
    attention: (raw) => roundedAttention(raw, shape.headDim),
    scales: [shape.kvHeads * shape.headDim],
    added: [
      field(GRAPH_INPUT, valueInfo(FIRST_POSITION, 'int64', [1])),
      floatScalar('kv.least', -MOST_LEVEL),
      floatScalar('kv.most', MOST_LEVEL),
    ],
  });

/** The same decoder with KV that is not rounded, and computed as without levels: what scales are measured with. */
export const floatKvGraph = (model: Uint8Array, shape: CacheShape): Uint8Array =>
  floatKv(model, shape, { attention: floatAttention });
