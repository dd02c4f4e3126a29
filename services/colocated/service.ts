/** Both gRPC services around one engine and one KV pool. */
import type { KvPuller } from '../decode/kv-puller.ts';
import { RemoteKv } from '../decode/kv-source.ts';
import type { StepEngine } from '../decode/loop.ts';
import { createDecodeService } from '../decode/service.ts';
import type { KvDisk } from '../lib/kv/disk/kv-disk.ts';
import { PrefixCache } from '../lib/kv/prefix.ts';
import type { Logger } from '../lib/process/log.ts';
import { LeaseTable } from '../prefill/leases.ts';
import type { PromptEngine } from '../prefill/prompt-computation.ts';
import { createPrefillService, type PrefillOptions } from '../prefill/service.ts';
import { LocalKv } from './local-kv.ts';
import type { ColocatedConfig } from './settings.ts';
import { SharedEngine } from './shared-engine.ts';

export type ColocatedOptions = Omit<PrefillOptions, 'chunkTokens' | 'heldElsewhere' | 'engineContended'> &
  Pick<ColocatedConfig, 'kvLeaseMs' | 'prefillChunkTokens' | 'sharedChunkTokens' | 'queueSequences'>;

export interface ColocatedParts {
  readonly session: PromptEngine & StepEngine;
  readonly puller: KvPuller;
  /** Keeps the KV of prompts on disk; undefined where none is kept there. */
  readonly disk?: KvDisk | undefined;
  readonly log: Logger;
}

export function createColocatedService({ session, puller, disk, log }: ColocatedParts, options: ColocatedOptions) {
  const engine = new SharedEngine(session);
  const { pool } = engine;
  const prefixes = new PrefixCache(pool);
  const leases = new LeaseTable(pool, prefixes, options.kvLeaseMs);
  const source = new LocalKv({
    pool,
    leases,
    prefixes,
    // Only sequences whose KV comes from another process wait for a slot: these are the ones that are bounded.
    remote: new RemoteKv(pool, puller, options.queueSequences),
    address: options.address,
    exclusive: (work) => engine.inTurn(work),
  });
  const decode = createDecodeService(engine, {
    model: options.model,
    fingerprint: options.fingerprint,
    device: options.device,
    draining: options.draining,
    source,
    log,
    heldElsewhere: () => leases.size,
  });
  const isDecoding = () => decode.running() > 0;
  const prefill = createPrefillService(
    { engine, prefixes, leases, disk, log },
    {
      ...options,
      // While sequences decode, each of their tokens waits for a whole chunk.
      chunkTokens: () => (isDecoding() ? options.sharedChunkTokens : options.prefillChunkTokens),
      heldElsewhere: () => source.held,
      engineContended: isDecoding,
    },
  );
  return {
    mounts: [...prefill.mounts, ...decode.mounts],
    warmUp: prefill.warmUp,
    /** Saves the KV of kept prompts that is not on disk yet; see the prefill service. */
    saveKv: prefill.saveKv,
    /** Brings gauges up to date before they are read. */
    observe: prefill.observe,
  };
}
