/** The encoder alone, for the queries of dense retrieval: one text, one embedding, off the event loop. */
import { OrtSession, type SessionOptions } from '../../engine/ort.ts';
import type { Bundle } from '../../model/bundle/bundle.ts';
import { contextOf, encoderInputs } from '../encode/encode.ts';
import { inputBuilder } from '../encode/encoder-input.ts';

export interface QueryEncoder {
  /** Of encoder and projector: to be compared with the index's. */
  readonly fingerprint: string;
  /** [dim], length 1. */
  embed(text: string): Promise<Float32Array>;
  dispose(): void;
}

/**
 * Loads the encoder of a bundle; to be disposed of. A query is read as source code: the lines around a cursor do not
 * parse.
 * @throws ServingError bundle_invalid where the bundle has none.
 */
export async function loadQueryEncoder(bundle: Bundle, options: SessionOptions): Promise<QueryEncoder> {
  const { paths, settings, fingerprint } = contextOf(bundle);
  const inputs = await inputBuilder(bundle.dir, paths.tokenizerDir, { ...settings, modality: 'source' });
  const session = await OrtSession.load(paths.encoder, options);
  return {
    fingerprint,
    async embed(text) {
      const { ids } = inputs.build({ path: '', text: `${settings.queryPrefix}${text}` });
      const { embeddings } = await session.run(encoderInputs([ids]), ['embeddings']);
      return embeddings?.data as Float32Array;
    },
    dispose: () => session.dispose(),
  };
}
