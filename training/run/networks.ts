/** The two frozen networks of a run, as they are on disk, and what is wrong with them. */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { TensorSource } from '../../services/lib/model/checkpoint/checkpoint.ts';
import { openSourceNetwork, type SourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import { type DecoderSpec, isDecoder } from '../../services/lib/model/checkpoint/spec.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Cleanup } from './cleanup.ts';
import type { TrainOptions } from './settings.ts';

/**
 * Opens the language model and the encoder.
 * @throws ServingError checkpoint_invalid, also for weights that are not finite, when they are read; config_invalid for
 *   a bundle, or a language model that is an encoder.
 */
export async function openNetworks(
  options: Pick<TrainOptions, 'llm' | 'encoder'>,
  cleanup: Cleanup,
): Promise<{ llm: SourceNetwork; spec: DecoderSpec; encoder: SourceNetwork }> {
  const llm = await open('--llm', options.llm, cleanup);
  const { spec } = llm;
  if (!isDecoder(spec)) {
    const what = `--llm ${options.llm}: ${spec.architecture} is an encoder: name a decoder`;
    throw new ServingError('config_invalid', what);
  }
  const encoder = options.encoder === undefined ? llm : await open('--encoder', options.encoder, cleanup);
  return { llm, spec, encoder };
}

async function open(flag: string, dir: string, cleanup: Cleanup): Promise<SourceNetwork> {
  const isBundle = await stat(join(dir, 'manifest.json')).then(
    () => true,
    () => false,
  );
  if (isBundle) {
    const remedy = 'name the Hugging Face folder that it was exported from';
    const what = `${flag} ${dir} is a bundle, whose weights are in the form that serves: ${remedy}`;
    throw new ServingError('config_invalid', what);
  }
  const network = await openSourceNetwork(dir);
  cleanup.defer(() => network[Symbol.asyncDispose]());
  return { ...network, weights: finite(network.weights) };
}

/** The same source, which refuses a tensor with a number that is not finite. */
const finite = (source: TensorSource): TensorSource => ({
  origin: source.origin,
  shapeOf: (name) => source.shapeOf(name),
  read: async (name) => {
    const values = await source.read(name);
    const at = values.findIndex((value) => !Number.isFinite(value));
    if (at < 0) return values;
    const what = `${source.origin}: ${name} holds ${values[at]} at index ${at}: the file is damaged`;
    throw new ServingError('checkpoint_invalid', what, { remedy: 'Download this checkpoint again.' });
  },
});
