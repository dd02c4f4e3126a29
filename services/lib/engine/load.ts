/** A worker's engine, from its settings: bundle, KV pool, decoder; warm before the worker says it is ready. */
import { KvPool } from '../kv/pool.ts';
import { type Bundle, openBundle } from '../model/bundle.ts';
import type { Config } from '../process/config.ts';
import { ServingError } from '../process/errors.ts';
import type { Logger } from '../process/log.ts';
import { NO_SOFT_TOKENS } from '../request/sequence.ts';
import { DecoderSession } from './session.ts';

export const ENGINE_SETTINGS = ['model', 'servedName', 'provider', 'threads', 'spin', 'slots', 'capacity'] as const;
export type EngineConfig = Config<(typeof ENGINE_SETTINGS)[number]>;

export interface Engine {
  readonly bundle: Bundle;
  readonly session: DecoderSession;
  /** As clients ask for it. */
  readonly modelName: string;
}

/**
 * @param phase whose weights are loaded: prompts may have their own.
 * @throws ServingError bundle_invalid, config_invalid, out_of_memory, provider_unavailable, runtime_failed.
 */
export async function loadEngine(config: EngineConfig, phase: 'prefill' | 'decode', log: Logger): Promise<Engine> {
  const started = performance.now();
  const bundle = await openBundle(config.model);
  const { spec, maxPositions } = bundle.manifest.llm;
  if (config.capacity > maxPositions) {
    throw new ServingError(
      'config_invalid',
      `--capacity ${config.capacity} exceeds the ${maxPositions} positions of ${config.model}`,
    );
  }
  const { layers, kvHeads, headDim } = spec;
  const pool = new KvPool({ layers, kvHeads, headDim }, config.slots, config.capacity);
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  const session = await DecoderSession.load(phase === 'prefill' ? bundle.prefill : bundle.llm, shape, pool, {
    provider: config.provider,
    threads: config.threads,
    spin: config.spin,
    onFallback: (reason) => log.warn({ reason }, 'computing on the CPU'),
  });
  const loaded = performance.now();
  // First runs allocate and touch every weight; no request should pay for that.
  await session.chunk({ slot: 0, past: 0, ids: Int32Array.of(0, 0), soft: NO_SOFT_TOKENS, logitRows: [1] });
  await session.step(Int32Array.of(0), Int32Array.of(2));
  const warm = performance.now();
  log.info({ model: bundle.manifest.name, load_ms: loaded - started, warm_ms: warm - loaded }, 'engine loaded');
  return { bundle, session, modelName: config.servedName || bundle.manifest.name };
}
