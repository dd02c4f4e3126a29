/** A network to export, with its architecture, weights and tokenizer: from a Hugging Face folder, or a random one. */
import { basename, resolve } from 'node:path';
import { Checkpoint, type TensorSource } from './checkpoint.ts';
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
}

/** @throws ServingError checkpoint_invalid */
export async function openSourceNetwork(dir: string): Promise<SourceNetwork> {
  const spec = await readSpec(dir);
  const weights = await Checkpoint.open(dir);
  const dispose = () => weights[Symbol.asyncDispose]();
  return { name: basename(resolve(dir)), spec, weights, tokenizerDir: dir, [Symbol.asyncDispose]: dispose };
}
