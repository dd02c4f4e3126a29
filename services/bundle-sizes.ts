/**
 * `llavacode bundle sizes`: the figures of a bundle from which the memory of its services follows, as the values
 * `model` of the Helm chart in deploy/helm.
 */
import { engineMemory } from './lib/engine/memory.ts';
import { DEFAULT_CAPACITY } from './lib/engine/settings.ts';
import type { Manifest } from './lib/model/bundle/bundle.ts';

/** The block `model` of the chart's values. Sizes are bytes. */
interface BundleSizes {
  readonly precision: string;
  /** Of the weights that decode; with int8 KV also of the slot of floats of a colocated worker, for its prompts. */
  readonly weightsBytes: number;
  /** Of the weights that compute prompts, the same where the bundle has one set; with int8 KV also of that slot. */
  readonly promptWeightsBytes: number;
  /** Of encoder and projector; 0 without. */
  readonly contextWeightsBytes: number;
  /** Of the KV cache of one token. */
  readonly kvBytesPerToken: number;
  /** Ids, each with 4 bytes of logits in a row. */
  readonly vocabulary: number;
  /** Tokens of one slot, where no setting says otherwise. */
  readonly capacity: number;
}

function bundleSizes(manifest: Manifest): BundleSizes {
  const { precision, llm, context } = manifest;
  const capacity = Math.min(DEFAULT_CAPACITY, llm.maxPositions);
  const decoding = engineMemory(manifest, 'llm', 1, capacity);
  const prompts = engineMemory(manifest, 'prefill', 1, capacity);
  const contextFiles = context ? [...context.encoder.files, ...context.projector.files] : [];
  return {
    precision,
    weightsBytes: decoding.weights + decoding.staged,
    promptWeightsBytes: prompts.weights + prompts.staged,
    contextWeightsBytes: contextFiles.reduce((sum, { bytes }) => sum + bytes, 0),
    kvBytesPerToken: decoding.perToken,
    vocabulary: llm.spec.vocab,
    capacity,
  };
}

/** YAML that `helm --values` takes. */
export const sizesYaml = (manifest: Manifest): string => {
  const lines = Object.entries(bundleSizes(manifest)).map(([key, value]) => `  ${key}: ${JSON.stringify(value)}`);
  return [`# ${manifest.name}`, 'model:', ...lines, ''].join('\n');
};
