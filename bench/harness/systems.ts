/** Prepares models and starts systems for the benches of whole systems. */
import { mkdir } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { PromptOrder } from '../../services/lib/text/prompt-format.ts';
import type { ServiceProcess } from '../../services/supervisor.ts';
import type { SystemBenchOptions } from '../options.ts';
import { reportedIndex } from '../system/cli.ts';
import type { Pinning } from '../system/cores.ts';
import { type Deployment, deploymentName } from '../system/deployment.ts';
import { type BenchModel, openModel } from '../system/model.ts';
import { PromptMaker } from '../system/prompts.ts';
import { type SystemSettings, startDeployment } from '../system/system.ts';

export interface PreparedModel {
  readonly model: BenchModel;
  readonly prompts: PromptMaker;
  /** URL of the store that holds the index of the repository. */
  readonly store: string;
}

export interface SystemUnderTest {
  readonly name: string;
  /** Undefined for a system that was running before. */
  readonly deployment: Deployment | undefined;
  readonly url: string;
  /** Its processes; none of a system that was running before. */
  readonly processes: readonly ServiceProcess[];
}

/** Opens the bundle and indexes the repository with it; makes what does not exist yet. */
export async function prepareModel(name: string, options: SystemBenchOptions): Promise<PreparedModel> {
  const { data, path, cores } = options;
  await mkdir(data, { recursive: true });
  const model = await openModel(name, options);
  const repo = repoName(options);
  const store = `lmdb:${resolve(data, `index-${basename(model.bundle)}`)}`;
  if (options.url === undefined) {
    await reportedIndex({ bundle: model.bundle, store, repo, path }, cores.length, join(data, 'index.json'));
  }
  return { model, store, prompts: await PromptMaker.load(repo, path, model.tokenizer) };
}

export const repoName = ({ repo, path }: SystemBenchOptions) => repo ?? basename(resolve(path));

/** What a bench wants of its systems, where that is not what the options say. */
interface SystemPlan extends Pick<SystemSettings, 'gateway' | 'workers' | 'decode'> {
  /** Whether workers have cores of their own; not if not given. */
  readonly pinning?: Pinning;
  /** KV slots of each worker; those of the options when not given. */
  readonly slots?: number;
  /** The gateway refuses a request that would wait longer; when not given, queues show as latency. */
  readonly targetTtftMs?: number;
  readonly promptOrder?: PromptOrder;
}

/** The settings of a system of the prepared model. */
export const systemSettings = (
  options: SystemBenchOptions,
  { model, store }: Pick<PreparedModel, 'model' | 'store'>,
  {
    pinning = 'shared',
    slots = options.slots,
    targetTtftMs = options.timeoutMs,
    promptOrder,
    ...flags
  }: SystemPlan = {},
): SystemSettings => ({
  bundle: model.bundle,
  store,
  cores: options.cores,
  pinning,
  slots,
  capacity: options.capacity,
  data: resolve(options.data),
  requestTimeoutMs: options.timeoutMs,
  targetTtftMs,
  promptOrder,
  ...flags,
});

/**
 * Starts the deployments, all at once, and stops them when `use` has ended. With `--url` it uses that system instead.
 */
export async function withSystems<T>(
  options: SystemBenchOptions,
  prepared: Pick<PreparedModel, 'model' | 'store'>,
  { deployments, ...plan }: SystemPlan & { readonly deployments: readonly Deployment[] },
  use: (systems: readonly SystemUnderTest[]) => Promise<T>,
): Promise<T> {
  if (options.url !== undefined)
    return use([{ name: options.url, deployment: undefined, url: options.url, processes: [] }]);
  const settings = systemSettings(options, prepared, plan);
  const running: Awaited<ReturnType<typeof startDeployment>>[] = [];
  try {
    const systems: SystemUnderTest[] = [];
    for (const deployment of deployments) {
      const system = await startDeployment(deployment, settings);
      running.push(system);
      systems.push({ name: deploymentName(deployment), deployment, url: system.url, processes: system.processes });
    }
    return await use(systems);
  } finally {
    await Promise.all(running.map((system) => system.close()));
  }
}

/** @throws ServingError invalid_request if a URL is given to a bench that cannot measure a running system. */
export function assertNoUrl({ url }: SystemBenchOptions, bench: string, subject: string): void {
  if (url === undefined) return;
  throw new ServingError('invalid_request', `bench ${bench} measures ${subject} and takes no --url: leave it out`);
}
