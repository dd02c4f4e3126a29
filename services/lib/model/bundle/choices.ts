/** The choices that an export has, by name: the command line, the settings and the manifest take them from here. */

/**
 * Precision of a bundle's weights; with `-fp16` what is computed with them, and the KV, has 16 bits too (see
 * weight-formats.ts).
 */
export const PRECISIONS = ['fp32', 'fp16', 'int8', 'int8-fp16', 'mixed', 'int4', 'int4-fp16'] as const;
export type Precision = (typeof PRECISIONS)[number];

/** Weights for prompts: the same as for decoding, or weights and activations of 8 bits. */
export const PREFILL_PRECISIONS = ['same', 'w8a8'] as const;
export type PrefillPrecision = (typeof PREFILL_PRECISIONS)[number];

/** How the KV of a bundle lies on the CPU: as the graphs compute it, or in int8 with scales of the bundle. */
export const KV_FORMS = ['floats', 'int8'] as const;
export type KvForm = (typeof KV_FORMS)[number];

/** The token of a chunk whose vector an encoder gives, of which `cls` is the first, or the mean of all. */
export const POOLINGS = ['last', 'mean', 'cls'] as const;

/** Soft tokens of one chunk. The paper has one. */
export const SOFT_PER_CHUNK = [1, 2, 4, 8] as const;
export type SoftPerChunk = (typeof SOFT_PER_CHUNK)[number];

/** How a language model encodes a chunk; see encoder-settings.ts. */
export const ENCODER_RECIPES = ['published', 'authors'] as const;

/** What UniXcoder reads of a chunk. */
export const ENCODER_MODALITIES = ['source', 'ast'] as const;
