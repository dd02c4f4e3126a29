/**
 * Writes a GGUF (version 3) of a Qwen2 shape: Q4_0 matrices of seeded random blocks. Speed does not depend on values.
 */
import { createCipheriv } from 'node:crypto';
import { open } from 'node:fs/promises';

const TYPE = { u32: 4, i32: 5, f32: 6, string: 8, array: 9 };
const F32 = { id: 0, bytes: (elements) => elements * 4 };
/** Blocks of 32 weights: a float16 scale and 16 bytes of 4-bit values. */
const Q4_0 = { id: 2, bytes: (elements) => (elements / 32) * 18 };
const ALIGNMENT = 32;
const padding = (bytes) => (ALIGNMENT - (bytes % ALIGNMENT)) % ALIGNMENT;
/** A multiple of 18 and of 16 bytes: whole blocks of Q4_0 and of the cipher. */
const PIECE = 18 * 16 * 4096;

const u32 = (value) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};
const u64 = (value) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
};
const f32 = (value) => {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
};
const string = (text) => Buffer.concat([u64(Buffer.byteLength(text)), Buffer.from(text)]);
const entry = (key, type, value) => Buffer.concat([string(key), u32(type), value]);
const list = (key, type, values) =>
  entry(key, TYPE.array, Buffer.concat([u32(type), u64(values.length), ...values]));

/** The metadata that llama.cpp needs to load the network and a tokenizer of made-up tokens. */
function metadata(spec, name) {
  const tokens = Array.from({ length: spec.vocab }, (_, i) => string(`<t${i}>`));
  return [
    entry('general.architecture', TYPE.string, string('qwen2')),
    entry('general.name', TYPE.string, string(name)),
    entry('general.file_type', TYPE.u32, u32(2)),
    entry('qwen2.context_length', TYPE.u32, u32(spec.maxPositions)),
    entry('qwen2.embedding_length', TYPE.u32, u32(spec.hidden)),
    entry('qwen2.block_count', TYPE.u32, u32(spec.layers)),
    entry('qwen2.feed_forward_length', TYPE.u32, u32(spec.intermediate)),
    entry('qwen2.attention.head_count', TYPE.u32, u32(spec.heads)),
    entry('qwen2.attention.head_count_kv', TYPE.u32, u32(spec.kvHeads)),
    entry('qwen2.attention.layer_norm_rms_epsilon', TYPE.f32, f32(spec.normEps)),
    entry('qwen2.rope.freq_base', TYPE.f32, f32(spec.ropeTheta)),
    entry('tokenizer.ggml.model', TYPE.string, string('gpt2')),
    entry('tokenizer.ggml.pre', TYPE.string, string('qwen2')),
    list('tokenizer.ggml.tokens', TYPE.string, tokens),
    list('tokenizer.ggml.token_type', TYPE.i32, tokens.map(() => u32(1))),
    list('tokenizer.ggml.merges', TYPE.string, [string('a b')]),
    entry('tokenizer.ggml.bos_token_id', TYPE.u32, u32(spec.vocab - 2)),
    entry('tokenizer.ggml.eos_token_id', TYPE.u32, u32(spec.vocab - 1)),
  ];
}

/** Name, [rows, columns] and type of every tensor. The output matrix is separate, so that llama.cpp may repack it. */
function tensorsOf({ layers, hidden, heads, kvHeads, headDim, intermediate, vocab }) {
  const matrix = (name, rows, columns) => ({ name: `${name}.weight`, shape: [rows, columns], type: Q4_0 });
  const vector = (name, length, fill) => ({ name, shape: [length], type: F32, fill });
  const block = (i) => {
    const p = `blk.${i}`;
    return [
      vector(`${p}.attn_norm.weight`, hidden, 1),
      matrix(`${p}.attn_q`, heads * headDim, hidden),
      vector(`${p}.attn_q.bias`, heads * headDim, 0),
      matrix(`${p}.attn_k`, kvHeads * headDim, hidden),
      vector(`${p}.attn_k.bias`, kvHeads * headDim, 0),
      matrix(`${p}.attn_v`, kvHeads * headDim, hidden),
      vector(`${p}.attn_v.bias`, kvHeads * headDim, 0),
      matrix(`${p}.attn_output`, hidden, heads * headDim),
      vector(`${p}.ffn_norm.weight`, hidden, 1),
      matrix(`${p}.ffn_gate`, intermediate, hidden),
      matrix(`${p}.ffn_up`, intermediate, hidden),
      matrix(`${p}.ffn_down`, hidden, intermediate),
    ];
  };
  return [
    matrix('token_embd', vocab, hidden),
    ...Array.from({ length: layers }, (_, i) => block(i)).flat(),
    vector('output_norm.weight', hidden, 1),
    matrix('output', vocab, hidden),
  ];
}

const sizeOf = ({ shape, type }) => type.bytes(shape.reduce((a, b) => a * b, 1));

/** The bytes of a tensor, in pieces. */
function* dataOf(tensor, random) {
  if (tensor.type === F32) {
    yield Buffer.from(new Float32Array(tensor.shape[0]).fill(tensor.fill).buffer);
    return;
  }
  const bytes = sizeOf(tensor);
  for (let done = 0; done < bytes; done += PIECE) {
    const piece = random.update(Buffer.alloc(Math.min(PIECE, bytes - done)));
    // Scales from 0.0005 to 0.008: their sign and exponent bits must not make a NaN.
    for (let at = 1; at < piece.length; at += 18) piece[at] = 0x10 | (piece[at] & 0x0f);
    yield piece;
  }
}

/**
 * @param spec the spec in the manifest of the bundle: layers, hidden, heads, kvHeads, headDim, intermediate, vocab,
 *   normEps, ropeTheta, maxPositions.
 */
export async function writeGguf(path, spec, name) {
  if (spec.architecture !== 'qwen2') throw new Error(`a GGUF is written for qwen2 shapes, not for ${spec.architecture}`);
  const pairs = metadata(spec, name);
  const tensors = tensorsOf(spec);
  const infos = [];
  let offset = 0;
  for (const tensor of tensors) {
    const dims = tensor.shape.toReversed().map(u64);
    infos.push(string(tensor.name), u32(dims.length), ...dims, u32(tensor.type.id), u64(offset));
    offset += sizeOf(tensor) + padding(sizeOf(tensor));
  }
  const head = Buffer.concat([
    Buffer.from('GGUF'),
    u32(3),
    u64(tensors.length),
    u64(pairs.length),
    ...pairs,
    ...infos,
  ]);
  const random = createCipheriv('aes-128-ctr', Buffer.alloc(16, 1), Buffer.alloc(16));
  const file = await open(path, 'w');
  try {
    await file.writeFile(head);
    await file.writeFile(Buffer.alloc(padding(head.length)));
    for (const tensor of tensors) {
      for (const piece of dataOf(tensor, random)) await file.writeFile(piece);
      await file.writeFile(Buffer.alloc(padding(sizeOf(tensor))));
    }
  } finally {
    await file.close();
  }
}
