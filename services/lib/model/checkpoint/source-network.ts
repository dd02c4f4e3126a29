/**
 * A network to export, with its architecture, weights and tokenizer: from a Hugging Face folder, a GGUF file, or a
 * random one.
 */
import { basename, resolve } from 'node:path';
import { Checkpoint, type TensorSource } from './checkpoint.ts';
import { openGgufNetwork } from './gguf-network.ts';
import { type NetworkSpec, readSpec } from './spec.ts';

export interface SourceNetwork extends AsyncDisposable {
  /** Name under which it is served by default. */
  readonly name: string;
  readonly spec: NetworkSpec;
  readonly weights: TensorSource;
  /** Folder with `tokenizer.json` and, if there is one, `tokenizer_config.json`. */
  readonly tokenizerDir: string;
  /** The model that the tokenizer belongs to, if it is not the network's own. */
  readonly tokenizerOf?: string;
  /** Weights that share a scale in the source, where that can be kept: the block of an export, if none is asked for. */
  readonly block?: number;
}

/**
 * @param path a Hugging Face folder, or a GGUF file.
 * @throws ServingError checkpoint_invalid
 */
export async function openSourceNetwork(path: string): Promise<SourceNetwork> {
  if (path.endsWith('.gguf')) return openGgufNetwork(path);
  const spec = await readSpec(path);
  const weights = await Checkpoint.open(path);
  const dispose = () => weights[Symbol.asyncDispose]();
  return { name: basename(resolve(path)), spec, weights, tokenizerDir: path, [Symbol.asyncDispose]: dispose };
}

/** The architecture of a network alone. @throws ServingError checkpoint_invalid */
export async function readNetworkSpec(path: string): Promise<NetworkSpec> {
  await using network = await openSourceNetwork(path);
  return network.spec;
}
