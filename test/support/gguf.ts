/** Writes GGUF files as llama.cpp's converter does, sound ones and others. */
import { join } from 'node:path';
import { Checkpoint } from '../../services/lib/model/checkpoint/checkpoint.ts';
import { type DecoderSpec, readSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { narrow } from '../../services/lib/numeric/half.ts';
import { readJsonFile } from './models.ts';

export type GgufPair =
  | readonly [key: string, type: 'u32' | 'u64' | 'f32', value: number]
  | readonly [key: string, type: 'string', value: string]
  | readonly [key: string, type: 'bool', value: boolean]
  | readonly [key: string, type: 'strings', value: readonly string[]]
  | readonly [key: string, type: 'i32s', value: readonly number[]];

export interface GgufTensorBytes {
  readonly name: string;
  /** Row-major. */
  readonly shape: readonly number[];
  /** Its number in the file. */
  readonly type: number;
  readonly bytes: Uint8Array;
  /** The place in the data that the header names, if not the true one. */
  readonly offset?: number;
}

const u32 = (value: number) => Buffer.from(Uint32Array.of(value).buffer);
const f32 = (value: number) => Buffer.from(Float32Array.of(value).buffer);
const u64 = (value: number) => Buffer.from(BigUint64Array.of(BigInt(value)).buffer);
const text = (value: string) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)]);

function valueBytes(pair: GgufPair): Buffer {
  switch (pair[1]) {
    case 'u32':
      return Buffer.concat([u32(4), u32(pair[2])]);
    case 'u64':
      return Buffer.concat([u32(10), u64(pair[2])]);
    case 'f32':
      return Buffer.concat([u32(6), f32(pair[2])]);
    case 'bool':
      return Buffer.concat([u32(7), Buffer.from([Number(pair[2])])]);
    case 'string':
      return Buffer.concat([u32(8), text(pair[2])]);
    case 'strings':
      return Buffer.concat([u32(9), u32(8), u64(pair[2].length), ...pair[2].map(text)]);
    case 'i32s':
      return Buffer.concat([u32(9), u32(5), u64(pair[2].length), ...pair[2].map(u32)]);
  }
}

const ALIGNMENT = 32;
const padded = (bytes: Uint8Array) =>
  Buffer.concat([bytes, Buffer.alloc((ALIGNMENT - (bytes.length % ALIGNMENT)) % ALIGNMENT)]);

export function ggufBytes(pairs: readonly GgufPair[], tensors: readonly GgufTensorBytes[]): Buffer {
  let end = 0;
  const infos = tensors.map(({ name, shape, type, bytes, offset }) => {
    const place = offset ?? end;
    end += padded(bytes).length;
    return Buffer.concat([text(name), u32(shape.length), ...shape.toReversed().map(u64), u32(type), u64(place)]);
  });
  const head = [Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(pairs.length)];
  const metadata = pairs.map((pair) => Buffer.concat([text(pair[0]), valueBytes(pair)]));
  return Buffer.concat([
    padded(Buffer.concat([...head, ...metadata, ...infos])),
    ...tensors.map((t) => padded(t.bytes)),
  ]);
}

interface TokenizerJsonFile {
  readonly added_tokens: readonly { readonly id: number; readonly content: string; readonly special: boolean }[];
  readonly model: { readonly vocab: Record<string, number>; readonly merges: readonly (string | [string, string])[] };
}

/** A Hugging Face tokenizer as a GGUF holds it. Ids without a token become unused ones. */
export function tokenizerPairs(json: TokenizerJsonFile, pre: string, vocab: number, eosId?: number): GgufPair[] {
  const tokens = Array.from({ length: vocab }, (_, id) => `[PAD${id}]`);
  const types = new Array<number>(vocab).fill(5);
  for (const [token, id] of Object.entries(json.model.vocab)) [tokens[id], types[id]] = [token, 1];
  for (const { id, content, special } of json.added_tokens) [tokens[id], types[id]] = [content, special ? 3 : 4];
  return [
    ['tokenizer.ggml.model', 'string', 'gpt2'],
    ['tokenizer.ggml.pre', 'string', pre],
    ['tokenizer.ggml.tokens', 'strings', tokens],
    ['tokenizer.ggml.token_type', 'i32s', types],
    ['tokenizer.ggml.merges', 'strings', json.model.merges.map((pair) => [pair].flat().join(' '))],
    ...(eosId === undefined ? [] : [['tokenizer.ggml.eos_token_id', 'u32', eosId] as const]),
  ];
}

/** The metadata of a network. */
export function networkPairs(spec: DecoderSpec): GgufPair[] {
  const { architecture } = spec;
  return [
    ['general.architecture', 'string', architecture],
    [`${architecture}.context_length`, 'u32', spec.maxPositions],
    [`${architecture}.embedding_length`, 'u32', spec.hidden],
    [`${architecture}.block_count`, 'u32', spec.layers],
    [`${architecture}.feed_forward_length`, 'u32', spec.intermediate],
    [`${architecture}.attention.head_count`, 'u32', spec.heads],
    [`${architecture}.attention.head_count_kv`, 'u32', spec.kvHeads],
    [`${architecture}.attention.key_length`, 'u32', spec.headDim],
    [`${architecture}.attention.value_length`, 'u32', spec.headDim],
    [`${architecture}.attention.layer_norm_rms_epsilon`, 'f32', spec.normEps],
    [`${architecture}.rope.freq_base`, 'f32', spec.ropeTheta],
  ];
}

/** Types of GGUF, with how a test stores numbers in them: floats as they are, blocks of 32 by their largest number. */
export const STORED = {
  F32: { type: 0, encode: (values: Float32Array) => new Uint8Array(values.slice().buffer) },
  Q4_0: { type: 2, encode: (values: Float32Array) => blocks(values, 8) },
  Q8_0: { type: 8, encode: (values: Float32Array) => blocks(values, 128) },
} as const;
type StoredName = keyof typeof STORED;

function blocks(values: Float32Array, half: 8 | 128): Uint8Array {
  const size = half === 8 ? 18 : 34;
  const out = new Uint8Array((values.length / 32) * size);
  const scale = new Uint16Array(1);
  for (let b = 0; b < values.length / 32; b++) {
    const block = values.subarray(32 * b, 32 * b + 32);
    const step = block.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / (half - 1);
    narrow(Float32Array.of(step), scale);
    out.set(new Uint8Array(scale.buffer), b * size);
    for (const [i, value] of block.entries()) {
      const level = step === 0 ? 0 : Math.round(value / step);
      if (half === 128) out[b * size + 2 + i] = level;
      else out[b * size + 2 + (i % 16)]! |= (level + 8) << (i < 16 ? 0 : 4);
    }
  }
  return out;
}

const NAMES: readonly (readonly [RegExp, string])[] = [
  [/^model\.embed_tokens/, 'token_embd'],
  [/^model\.norm/, 'output_norm'],
  [/^lm_head/, 'output'],
  [/^model\.layers\.(\d+)\.input_layernorm/, 'blk.$1.attn_norm'],
  [/^model\.layers\.(\d+)\.post_attention_layernorm/, 'blk.$1.ffn_norm'],
  [/^model\.layers\.(\d+)\.self_attn\.o_proj/, 'blk.$1.attn_output'],
  [/^model\.layers\.(\d+)\.self_attn\.([qkv])_proj/, 'blk.$1.attn_$2'],
  [/^model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj/, 'blk.$1.ffn_$2'],
];

/** The order of rows in which the converter stores queries and keys of `llama`: the halves of a head alternate. */
function alternated(values: Float32Array, rows: number, headDim: number): Float32Array {
  const width = values.length / rows;
  const out = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    const [head, half, i] = [
      Math.floor(row / headDim),
      Math.floor((row % headDim) / (headDim / 2)),
      row % (headDim / 2),
    ];
    out.set(values.subarray(row * width, (row + 1) * width), (head * headDim + 2 * i + half) * width);
  }
  return out;
}

/** A Hugging Face folder with one shard as a GGUF; matrices are stored in a type, vectors in 32-bit floats. */
export async function ggufOf(
  dir: string,
  names: readonly string[],
  stored: StoredName,
  pre = 'qwen2',
): Promise<Buffer> {
  const spec = (await readSpec(dir)) as DecoderSpec;
  await using checkpoint = await Checkpoint.open(dir);
  const tensors: GgufTensorBytes[] = [];
  for (const name of names) {
    const shape = checkpoint.shapeOf(name)!;
    let values = await checkpoint.read(name);
    if (spec.architecture === 'llama' && /[qk]_proj\.weight$/.test(name)) {
      values = alternated(values, shape[0]!, spec.headDim);
    }
    const { type, encode } = STORED[shape.length === 1 ? 'F32' : stored];
    const renamed = NAMES.reduce((text, [from, to]) => text.replace(from, to), name);
    tensors.push({ name: renamed, shape, type, bytes: encode(values) });
  }
  const json = await readJsonFile<TokenizerJsonFile>(join(dir, 'tokenizer.json'));
  return ggufBytes([...networkPairs(spec), ...tokenizerPairs(json, pre, spec.vocab, spec.eosIds[0])], tensors);
}
