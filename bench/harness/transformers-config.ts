/** The shape of a decoder as `config.json` of Hugging Face's transformers describes it, for programs that read that. */
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';

export const transformersConfig = (spec: DecoderSpec) => ({
  model_type: spec.architecture,
  num_hidden_layers: spec.layers,
  hidden_size: spec.hidden,
  num_attention_heads: spec.heads,
  num_key_value_heads: spec.kvHeads,
  head_dim: spec.headDim,
  intermediate_size: spec.intermediate,
  vocab_size: spec.vocab,
  max_position_embeddings: spec.maxPositions,
  rms_norm_eps: spec.normEps,
  rope_theta: spec.ropeTheta,
  tie_word_embeddings: spec.tied,
});
