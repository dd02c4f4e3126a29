/** Both gRPC services around one engine and one KV pool. */

import type { KvPuller } from '../decode/kv-puller.ts';
import { RemoteKv } from '../decode/kv-source.ts';
import type { StepEngine } from '../decode/loop.ts';
import { createDecodeService } from '../decode/service.ts';
import type { Logger } from '../lib/process/log.ts';
import { createPrefillService, type PrefillOptions } from '../prefill/service.ts';
import type { PromptEngine } from '../prefill/worker.ts';
import { LocalKv } from './local-kv.ts';
import { SharedEngine } from './shared-engine.ts';

export interface ColocatedOptions extends Omit<PrefillOptions, 'chunkTokens' | 'heldElsewhere' | 'wantedElsewhere'> {
  readonly prefillChunkTokens: number;
  /** In place of these, while sequences decode: each of their tokens waits for a chunk. */
  readonly sharedChunkTokens: number;
  /** Sequences that may wait for a slot; those alone whose KV comes from elsewhere. */
  readonly queueSequences: number;
}

export function createColocatedService(
  session: PromptEngine & StepEngine,
  { prefillChunkTokens, sharedChunkTokens, queueSequences, ...options }: ColocatedOptions,
  puller: KvPuller,
  log: Logger,
) {
  const engine = new SharedEngine(session);
  const { pool } = engine;
  const decode = createDecodeService(engine, {
    ...options,
    source: (loop) =>
      new LocalKv({
        pool,
        leases: prefill.leases,
        prefixes: prefill.prefixes,
        remote: new RemoteKv(pool, puller, queueSequences, () => loop.betweenSteps()),
        address: options.address,
        exclusive: (work) => engine.inTurn(work),
      }),
    heldElsewhere: () => prefill.leases.size,
  });
  const wantedElsewhere = () => decode.running() > 0;
  const chunkTokens = () => (wantedElsewhere() ? sharedChunkTokens : prefillChunkTokens);
  const heldElsewhere = () => decode.held();
  const prefill = createPrefillService(engine, { ...options, chunkTokens, heldElsewhere, wantedElsewhere }, log);
  return {
    mounts: [...prefill.mounts, ...decode.mounts],
    warmUp: prefill.warmUp,
    /** Brings gauges up to date before they are read. */
    observe: prefill.observe,
  };
}
