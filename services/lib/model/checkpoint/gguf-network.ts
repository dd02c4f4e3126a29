/**
 * A language model in a GGUF file, as llama.cpp's converter writes it from a Hugging Face folder: the architectures
 * `llama` and `qwen2`. Tensors are found under their Hugging Face names. What would change the arithmetic and is not
 * implemented is refused, never ignored.
 */
import { basename } from 'node:path';
import { ServingError } from '../../process/errors.ts';
import type { TensorSource } from './checkpoint.ts';
import { type BlockLevels, GGML_BLOCK } from './ggml-types.ts';
import { GgufFile } from './gguf-file.ts';
import { readGgufTokenizer, writeTokenizer } from './gguf-tokenizer.ts';
import { type DecoderSpec, isDecoder, parseSpec } from './spec.ts';

const ARCHITECTURES = ['llama', 'qwen2'];

const invalid = (file: string, what: string) => new ServingError('checkpoint_invalid', `${file}: ${what}`);

/**
 * Its tokenizer lies in a temporary folder until it is disposed of.
 * @throws ServingError checkpoint_invalid
 */
export async function openGgufNetwork(path: string) {
  const file = await GgufFile.open(path);
  try {
    const tokenizer = readGgufTokenizer(path, file.metadata);
    const spec = specOf(file, tokenizer.eosIds);
    if (tokenizer.ids > spec.vocab) {
      throw invalid(path, `the tokenizer has ${tokenizer.ids} tokens, and the embedding table ${spec.vocab} rows`);
    }
    const weights = new GgufWeights(file, spec);
    const folder = await writeTokenizer(tokenizer);
    return {
      name: basename(path).replace(/\.gguf$/, ''),
      spec,
      weights,
      tokenizerDir: folder.dir,
      ...(weights.hasLevels ? { block: GGML_BLOCK } : {}),
      [Symbol.asyncDispose]: async () => {
        await file.close();
        await folder.remove();
      },
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

function specOf(file: GgufFile, eosIds: readonly number[]): DecoderSpec {
  const { path, metadata, tensors } = file;
  const architecture = metadata.get('general.architecture');
  if (typeof architecture !== 'string' || !ARCHITECTURES.includes(architecture)) {
    const found = JSON.stringify(architecture ?? null);
    throw invalid(path, `general.architecture ${found} is not supported (${ARCHITECTURES.join(' and ')} are)`);
  }
  const value = (key: string) => metadata.get(`${architecture}.${key}`);
  const number = (key: string): number | undefined => {
    const found = value(key);
    if (found === undefined || typeof found === 'number') return found;
    // Some writers use 64 bits for counts.
    if (typeof found === 'bigint' && found <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(found);
    throw invalid(path, `${architecture}.${key} is not a number`);
  };
  const needed = (key: string): number => {
    const found = number(key);
    if (found === undefined) throw invalid(path, `${architecture}.${key} is missing`);
    return found;
  };
  assertPlain(path, architecture, metadata);
  const heads = needed('attention.head_count');
  const table = tensors.get('token_embd.weight');
  if (table === undefined) throw invalid(path, 'tensor "token_embd.weight" is missing');
  const layers = needed('block_count');
  // A number of the file is never the size of an allocation.
  if (layers > tensors.size)
    throw invalid(path, `${architecture}.block_count ${layers}: ${tensors.size} tensors follow`);
  const headDim = number('attention.key_length') ?? needed('embedding_length') / heads;
  for (const key of ['attention.value_length', 'rope.dimension_count']) {
    const found = number(key) ?? headDim;
    if (found !== headDim) throw invalid(path, `${architecture}.${key} ${found} is not supported (${headDim} is)`);
  }
  const spec = parseSpec(path, {
    model_type: architecture,
    hidden_size: needed('embedding_length'),
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: number('attention.head_count_kv') ?? heads,
    head_dim: headDim,
    intermediate_size: needed('feed_forward_length'),
    vocab_size: table.shape[0],
    max_position_embeddings: needed('context_length'),
    rms_norm_eps: rounded(needed('attention.layer_norm_rms_epsilon')),
    rope_theta: number('rope.freq_base') ?? 10_000,
    hidden_act: 'silu',
    tie_word_embeddings: !tensors.has('output.weight'),
    eos_token_id: eosIds,
  });
  if (!isDecoder(spec)) throw new Error('a GGUF of these architectures is a decoder');
  return spec;
}

/** The decimal number of which a file holds the nearest 32-bit float: 1e-5, and not 0.000009999999747378752. */
const rounded = (float: number) => Number(float.toPrecision(7));

/** Refuses what these architectures may have and our graphs do not compute. */
function assertPlain(path: string, architecture: string, metadata: GgufFile['metadata']): void {
  const refuse = (key: string, plain: readonly unknown[]) => {
    const found = metadata.get(`${architecture}.${key}`);
    if (found !== undefined && !plain.includes(found)) {
      throw invalid(path, `${architecture}.${key} ${found} is not supported`);
    }
  };
  refuse('rope.scaling.type', ['none']);
  refuse('rope.scale_linear', [1]);
  refuse('expert_count', [0]);
  refuse('attention.sliding_window', [0]);
  refuse('attention.scale', []);
}

const MATRICES: Readonly<Record<string, string>> = {
  'input_layernorm.weight': 'attn_norm.weight',
  'self_attn.q_proj.weight': 'attn_q.weight',
  'self_attn.k_proj.weight': 'attn_k.weight',
  'self_attn.v_proj.weight': 'attn_v.weight',
  'self_attn.q_proj.bias': 'attn_q.bias',
  'self_attn.k_proj.bias': 'attn_k.bias',
  'self_attn.v_proj.bias': 'attn_v.bias',
  'self_attn.o_proj.weight': 'attn_output.weight',
  'post_attention_layernorm.weight': 'ffn_norm.weight',
  'mlp.gate_proj.weight': 'ffn_gate.weight',
  'mlp.up_proj.weight': 'ffn_up.weight',
  'mlp.down_proj.weight': 'ffn_down.weight',
};
const WHOLE: Readonly<Record<string, string>> = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
};

class GgufWeights implements TensorSource {
  readonly origin: string;
  /** Whether any matrix is stored as levels and scales. */
  readonly hasLevels: boolean;
  readonly #file: GgufFile;
  readonly #spec: DecoderSpec;
  /** Names in the file, by Hugging Face name. */
  readonly #nameOf: ReadonlyMap<string, string>;

  /** @throws ServingError checkpoint_invalid for a tensor that the graphs would ignore. */
  constructor(file: GgufFile, spec: DecoderSpec) {
    this.origin = file.path;
    this.#file = file;
    this.#spec = spec;
    const layers = Array.from({ length: spec.layers }, (_, i) =>
      Object.entries(MATRICES)
        .filter(([name]) => spec.qkvBias || !name.endsWith('bias'))
        .map(([name, stored]) => [`model.layers.${i}.${name}`, `blk.${i}.${stored}`] as const),
    );
    this.#nameOf = new Map([...Object.entries(WHOLE), ...layers.flat()]);
    const used = new Set(this.#nameOf.values());
    const other = [...file.tensors.keys()].find((name) => !used.has(name));
    if (other !== undefined) {
      throw invalid(file.path, `tensor ${JSON.stringify(other)} is not supported for ${spec.architecture}`);
    }
    this.hasLevels = [...file.tensors.values()].some(({ type }) => type.levels !== undefined);
  }

  shapeOf(name: string): readonly number[] | undefined {
    const stored = this.#nameOf.get(name);
    return stored === undefined ? undefined : this.#file.tensors.get(stored)?.shape;
  }

  async read(name: string): Promise<Float32Array> {
    const values = await this.#file.read(this.#stored(name));
    const heads = this.#pairedHeads(name);
    return heads === undefined ? values : unpaired(values, heads * this.#spec.headDim, this.#spec.headDim);
  }

  levels(name: string): (() => Promise<BlockLevels>) | undefined {
    const read = this.#file.levels(this.#stored(name));
    const heads = this.#pairedHeads(name);
    if (read === undefined || heads === undefined) return read;
    return async () => {
      const { bits, levels, scales } = await read();
      const { headDim } = this.#spec;
      const rows = heads * headDim;
      return { bits, levels: unpaired(levels, rows, headDim), scales: unpaired(scales, rows, headDim) };
    };
  }

  #stored(name: string): string {
    const stored = this.#nameOf.get(name);
    if (stored === undefined) throw invalid(this.origin, `tensor ${JSON.stringify(name)} is missing`);
    return stored;
  }

  /**
   * The heads of a matrix whose rows the converter has put in pairs, because llama.cpp rotates neighbours in `llama`;
   * undefined for other matrices. In `qwen2` it rotates the halves of a head, as the graphs here do.
   */
  #pairedHeads(name: string): number | undefined {
    if (this.#spec.architecture !== 'llama') return undefined;
    if (name.endsWith('.q_proj.weight')) return this.#spec.heads;
    return name.endsWith('.k_proj.weight') ? this.#spec.kvHeads : undefined;
  }
}

/** Puts the rows 0, 2, 4 … of each head before its rows 1, 3, 5 …: the order before the converter's. */
function unpaired<A extends Float32Array | Int8Array>(values: A, rows: number, headDim: number): A {
  const width = values.length / rows;
  const out = values.slice() as A;
  for (let row = 0; row < rows; row++) {
    const [head, within] = [Math.floor(row / headDim), row % headDim];
    const half = headDim / 2;
    const from = head * headDim + (within < half ? 2 * within : 2 * (within - half) + 1);
    out.set(values.subarray(from * width, (from + 1) * width), row * width);
  }
  return out;
}
