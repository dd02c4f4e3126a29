/** Systems under test: started by the bench, on cores that it says, and stopped again. */
import { mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';
import type { PromptOrder } from '../../services/lib/text/prompt-format.ts';
import { type RunningSystem, startSystem } from '../../services/supervisor.ts';
import { divideCores, type Pinning, pin } from './cores.ts';

export type Mode = 'disaggregated' | 'colocated';

/** What is compared: a mode, with so many workers. */
export interface Deployment {
  readonly mode: Mode;
  /** In colocated mode the number of workers. */
  readonly prefill: number;
  readonly decode: number;
}

export const COLOCATED: Deployment = { mode: 'colocated', prefill: 1, decode: 0 };
export const DISAGGREGATED: Deployment = { mode: 'disaggregated', prefill: 1, decode: 1 };

export const deploymentName = ({ mode, prefill, decode }: Deployment) =>
  mode === 'colocated' ? `colocated ×${prefill}` : `disaggregated ${prefill}P:${decode}D`;

export interface SystemSettings {
  readonly bundle: string;
  /** Store URL of the index. */
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
  /** Undefined for the product's own. */
  readonly promptOrder: PromptOrder | undefined;
}

/**
 * Starts a deployment; every worker has as many threads as it has cores, and is confined to them. The gateway and the
 * bench itself run on whatever is free.
 */
export async function startDeployment(deployment: Deployment, settings: SystemSettings): Promise<RunningSystem> {
  const { mode, prefill, decode } = deployment;
  const { bundle, cores, pinning, slots, capacity, requestTimeoutMs, targetTtftMs, promptOrder } = settings;
  const workers = mode === 'colocated' ? prefill : prefill + decode;
  const divided = divideCores(cores, workers, pinning);
  const threads = (index: number) => ({ threads: divided[index]?.length ?? cores.length });
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
    },
    workers: { ...common, model: bundle, slots, capacity },
    prefillOnly: { ...threads(0), queueTokens: 1_000_000, kvLeaseMs: requestTimeoutMs },
    decodeOnly: { ...threads(mode === 'colocated' ? 0 : prefill), queueSequences: 1024 },
  });
  try {
    const computing = system.processes.filter(({ name }) => !name.startsWith('gateway'));
    for (const [i, { pid }] of computing.entries()) if (pid !== undefined) await pin(pid, divided[i]!);
  } catch (error) {
    await system.close();
    throw error;
  }
  return system;
}

export const BOTH = [COLOCATED, DISAGGREGATED];
