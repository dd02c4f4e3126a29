/** Starts and stops the systems under test, on the cores that the bench chose. */
import { mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';
import type { PromptOrder } from '../../services/lib/text/prompt-format.ts';
import { type Flags, type RunningSystem, startSystem } from '../../services/supervisor.ts';
import { divideCores, type Pinning, pin } from './cores.ts';
import type { Deployment } from './deployment.ts';

export interface SystemSettings {
  readonly bundle: string;
  /** URL of the store that holds the index. */
  readonly store: string;
  readonly cores: readonly number[];
  readonly pinning: Pinning;
  readonly slots: number;
  /** Tokens of one slot. */
  readonly capacity: number;
  /** Folder for logs. */
  readonly data: string;
  readonly requestTimeoutMs: number;
  readonly targetTtftMs: number;
  /** Undefined leaves the gateway's own default. */
  readonly promptOrder: PromptOrder | undefined;
  /** Further settings of the gateway. */
  readonly gateway?: Flags | undefined;
  /** Further settings of all workers. */
  readonly workers?: Flags | undefined;
  /** Further settings of what decodes. */
  readonly decode?: Flags | undefined;
  /** Further settings of the indexer; undefined starts none. */
  readonly indexer?: Flags | undefined;
}

/**
 * Starts a deployment. Every worker has as many threads as it has cores, and is confined to them. The gateway and the
 * bench itself run on whatever core is free.
 */
export async function startDeployment(deployment: Deployment, settings: SystemSettings): Promise<RunningSystem> {
  const { mode, prefill, decode } = deployment;
  const { bundle, cores, slots, capacity, requestTimeoutMs, targetTtftMs, promptOrder } = settings;
  const workers = mode === 'colocated' ? prefill : prefill + decode;
  const divided = divideCores(cores, workers, settings.pinning);
  const threadsOf = (worker: number) => divided[worker]?.length ?? cores.length;
  const common = { logLevel: 'info', drainTimeoutMs: 5000 };
  const system = await startSystem({
    ...deployment,
    logs: await mkdtemp(join(settings.data, `${mode}-`)),
    gateway: {
      ...common,
      model: bundle,
      store: settings.store,
      port: 0,
      maxInflight: 1024,
      requestTimeoutMs,
      retrievalBudgetMs: 5000,
      targetTtftMs,
      ...(promptOrder && { promptOrder }),
      ...settings.gateway,
    },
    workers: { ...common, model: bundle, slots, capacity, ...settings.workers },
    ...(settings.indexer && {
      indexer: { ...common, model: bundle, store: settings.store, threads: cores.length, ...settings.indexer },
    }),
    prefillOnly: { threads: threadsOf(0), queueTokens: 1_000_000, kvLeaseMs: requestTimeoutMs },
    decodeOnly: { threads: threadsOf(mode === 'colocated' ? 0 : prefill), queueSequences: 1024, ...settings.decode },
  });
  try {
    const computing = system.processes.filter(({ name }) => !/^(gateway|indexer)/.test(name));
    for (const [i, { pid }] of computing.entries()) if (pid !== undefined) await pin(pid, divided[i]!);
  } catch (error) {
    await system.close();
    throw error;
  }
  return system;
}
