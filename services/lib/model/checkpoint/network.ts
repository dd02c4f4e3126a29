/** A network to export: what it is, its weights, where its tokenizer lies. From a Hugging Face folder, or made up. */
import { basename, resolve } from 'node:path';
import { Checkpoint, type TensorSource } from './checkpoint.ts';
import { type NetworkSpec, readSpec } from './spec.ts';

export interface Network extends AsyncDisposable {
  /** Under which it is served by default. */
  readonly name: string;
  readonly spec: NetworkSpec;
  readonly weights: TensorSource;
  /** Folder with `tokenizer.json` and, if there is one, `tokenizer_config.json`. */
  readonly tokenizerDir: string;
  /** Whose tokenizer that is, where it is not the network's own. */
  readonly tokenizerOf?: string;
}

/** @throws ServingError checkpoint_invalid */
export async function openNetwork(dir: string): Promise<Network> {
  const spec = await readSpec(dir);
  const weights = await Checkpoint.open(dir);
  const dispose = () => weights[Symbol.asyncDispose]();
  return { name: basename(resolve(dir)), spec, weights, tokenizerDir: dir, [Symbol.asyncDispose]: dispose };
}
