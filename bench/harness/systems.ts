/** What benches of whole systems have in common: options, models made ready, systems started. */
import { mkdir } from 'node:fs/promises';
import { basename, join, relative, resolve } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import type { PromptOrder } from '../../services/lib/text/prompt-format.ts';
import { index } from '../indexing/measure.ts';
import { type Pinning, parseCores } from '../system/cores.ts';
import { type BenchModel, openModel } from '../system/model.ts';
import { PromptMaker } from '../system/prompts.ts';
import { type Deployment, deploymentName, type SystemSettings, startDeployment } from '../system/system.ts';
import type { RunOptions } from './run.ts';

export interface BenchOptions extends RunOptions {
  /** Like 0-3; undefined takes all. */
  readonly cores: string | undefined;
  readonly precision: string;
  readonly prefillPrecision: string | undefined;
  /** The repository that prompts and chunks are taken from. */
  readonly path: string;
  /** A system that runs already; then nothing is started, and `repo` has to be indexed there. */
  readonly url: string | undefined;
  readonly repo: string | undefined;
  readonly slots: number;
  readonly capacity: number;
  readonly timeoutMs: number;
  readonly seed: number;
}

export interface PreparedModel {
  readonly model: BenchModel;
  readonly prompts: PromptMaker;
  /** URL of the store that the repository is indexed in. */
  readonly store: string;
}

export interface SystemUnderTest {
  readonly name: string;
  /** Undefined for one that ran already. */
  readonly deployment: Deployment | undefined;
  readonly url: string;
}

/** The bundle, made and indexed where it is not yet. */
export async function prepareModel(name: string, options: BenchOptions): Promise<PreparedModel> {
  await mkdir(options.data, { recursive: true });
  const model = await openModel(name, options);
  const repo = repoName(options);
  const store = `lmdb:${resolve(options.data, `index-${basename(model.bundle)}`)}`;
  if (options.url === undefined) {
    const threads = parseCores(options.cores).length;
    await index(model.bundle, store, repo, options.path, join(options.data, 'index.json'), threads);
  }
  return { model, store, prompts: await PromptMaker.load(repo, options.path, model.tokenizer) };
}

export const repoName = ({ repo, path }: BenchOptions) => repo ?? basename(resolve(path));

/** Starts the deployments, all at once, and stops them whatever comes of `use`; or takes the one at `url`. */
export async function withSystems<T>(
  options: BenchOptions,
  { model, store }: PreparedModel,
  plan: {
    readonly deployments: readonly Deployment[];
    readonly pinning: Pinning;
    readonly slots?: number;
    readonly targetTtftMs?: number | undefined;
    readonly promptOrder?: PromptOrder;
  },
  use: (systems: readonly SystemUnderTest[]) => Promise<T>,
): Promise<T> {
  if (options.url !== undefined) return use([{ name: options.url, deployment: undefined, url: options.url }]);
  const settings: SystemSettings = {
    bundle: model.bundle,
    store,
    cores: parseCores(options.cores),
    pinning: plan.pinning,
    slots: plan.slots ?? options.slots,
    capacity: options.capacity,
    data: resolve(options.data),
    requestTimeoutMs: options.timeoutMs,
    // Queues are to show as latency, not as refusals, where nothing else is said.
    targetTtftMs: plan.targetTtftMs ?? options.timeoutMs,
    promptOrder: plan.promptOrder,
  };
  const running: Awaited<ReturnType<typeof startDeployment>>[] = [];
  try {
    const systems: SystemUnderTest[] = [];
    for (const deployment of plan.deployments) {
      const system = await startDeployment(deployment, settings);
      running.push(system);
      systems.push({ name: deploymentName(deployment), deployment, url: system.url });
    }
    return await use(systems);
  } finally {
    await Promise.all(running.map((system) => system.close()));
  }
}

/** @throws ServingError invalid_request: what this bench measures cannot be reached at a URL. */
export function assertNoUrl({ url }: BenchOptions, bench: string, what: string): void {
  if (url === undefined) return;
  throw new ServingError('invalid_request', `bench ${bench} measures ${what} and takes no --url`);
}

/** Of all benches that start systems. */
export function systemSettings({ cores, slots, capacity, seed, timeoutMs, path }: BenchOptions) {
  return { cores: parseCores(cores), slots, capacity, seed, timeoutMs, path: relative(PACKAGE_ROOT, resolve(path)) };
}
