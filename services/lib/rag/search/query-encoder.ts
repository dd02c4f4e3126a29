/** The encoder alone, for the queries of dense retrieval: one embedding for one text, computed off the event loop. */
import { OrtSession, type SessionOptions } from '../../engine/ort.ts';
import type { Bundle } from '../../model/bundle/bundle.ts';
import { contextOf, encoderInputs } from '../encode/encode.ts';
import { inputBuilder } from '../encode/encoder-input.ts';

export interface QueryEncoder {
  /** Identifies encoder and projector, and must equal that of the index. */
  readonly fingerprint: string;
  /** @returns [dim], of length 1. */
  embed(text: string): Promise<Float32Array>;
  dispose(): void;
}

/**
 * Loads the encoder of a bundle. The caller must dispose of it. A query is always read as source code, because the
 * lines around a cursor do not parse.
 * @throws ServingError bundle_invalid if the bundle has no encoder.
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
