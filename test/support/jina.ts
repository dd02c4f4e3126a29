/** Small random checkpoints of JinaBERT in both published forms; the published ones have no golden here. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeSafetensors } from '../../services/lib/model/checkpoint/safetensors-writer.ts';
import { type JinaSpec, parseSpec } from '../../services/lib/model/checkpoint/spec.ts';
import type { NamedTensors } from './tensors.ts';

/** The config published for jina-embeddings-v2-base-code, with smaller sizes. */
export const JINA_CONFIG = {
  _name_or_path: 'jinaai/jina-bert-v2-qk-post-norm',
  model_type: 'bert',
  hidden_act: 'gelu',
  hidden_size: 48,
  intermediate_size: 40,
  num_attention_heads: 6,
  num_hidden_layers: 2,
  vocab_size: 50,
  max_position_embeddings: 64,
  type_vocab_size: 2,
  layer_norm_eps: 1e-12,
  position_embedding_type: 'alibi',
  feed_forward_type: 'geglu',
  emb_pooler: 'mean',
  pad_token_id: 0,
};
/** The names of jina-embeddings-v2-base-code, or those of its siblings for natural languages. */
export type JinaForm = 'code' | 'en';

/** Random weights under the published names. @param prefix of all names */
export function jinaTensors(spec: JinaSpec, form: JinaForm, prefix: string): NamedTensors {
  const { hidden, intermediate, vocab, tokenTypes, layers } = spec;
  const tensors = new Map<string, { shape: readonly number[]; data: Float32Array }>();
  let state = form === 'code' ? 7 : 11;
  const put = (name: string, shape: readonly number[], offset = 0) => {
    const size = shape.reduce((product, dim) => product * dim, 1);
    const data = Float32Array.from({ length: size }, () => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return offset + (state / 2 ** 32 - 0.5) * 0.6;
    });
    tensors.set(prefix + name, { shape, data });
  };
  const linear = (name: string, rows: number, columns: number) => {
    put(`${name}.weight`, [rows, columns]);
    put(`${name}.bias`, [rows]);
  };
  const norm = (name: string) => {
    put(`${name}.weight`, [hidden], 1);
    put(`${name}.bias`, [hidden]);
  };
  put('embeddings.word_embeddings.weight', [vocab, hidden]);
  put('embeddings.token_type_embeddings.weight', [tokenTypes, hidden]);
  norm('embeddings.LayerNorm');
  for (let i = 0; i < layers; i++) {
    const layer = `encoder.layer.${i}`;
    for (const part of ['query', 'key', 'value']) linear(`${layer}.attention.self.${part}`, hidden, hidden);
    linear(`${layer}.attention.output.dense`, hidden, hidden);
    norm(`${layer}.attention.output.LayerNorm`);
    if (form === 'code') {
      norm(`${layer}.attention.self.layer_norm_q`);
      norm(`${layer}.attention.self.layer_norm_k`);
      norm(`${layer}.layer_norm_1`);
      norm(`${layer}.layer_norm_2`);
      put(`${layer}.mlp.up_gated_layer.weight`, [2 * intermediate, hidden]);
      linear(`${layer}.mlp.down_layer`, hidden, intermediate);
    } else {
      put(`${layer}.mlp.gated_layers.weight`, [2 * intermediate, hidden]);
      linear(`${layer}.mlp.wo`, hidden, intermediate);
      norm(`${layer}.mlp.layernorm`);
    }
  }
  return tensors;
}

/** Writes config.json and weights of a small model of this form, of so many dimensions and tokens, into a folder. */
export async function writeJina(
  dir: string,
  sizes: { readonly hidden: number; readonly vocab: number },
): Promise<void> {
  const { hidden, vocab } = sizes;
  const config = { ...JINA_CONFIG, hidden_size: hidden, num_attention_heads: 4, vocab_size: vocab };
  await mkdir(dir, { recursive: true });
  await writeFile(join(dir, 'config.json'), JSON.stringify(config));
  const spec = parseSpec('config.json', config) as JinaSpec;
  await writeSafetensors(join(dir, 'model.safetensors'), jinaTensors(spec, 'code', ''));
}
