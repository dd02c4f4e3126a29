/** `llavacode up`: the whole system on one machine, for a person at a terminal. */
import { join, resolve } from 'node:path';
import { bundleOf } from './checkpoint-bundle.ts';
import { COLOCATED_SETTINGS } from './colocated/settings.ts';
import { SEQUENCE_SETTINGS } from './decode/settings.ts';
import { GATEWAY_SETTINGS } from './gateway/settings.ts';
import { showProgress, summary } from './index-report.ts';
import type { FolderTask } from './indexer/folder-task.ts';
import type { IndexReport } from './indexer/index-run.ts';
import { DEFAULT_URL, INDEXER_SETTINGS } from './indexer/settings.ts';
import type { IndexProgress } from './indexer/version-builder.ts';
import { ENGINE_SETTINGS, MODEL_SETTINGS } from './lib/engine/settings.ts';
import { contextLack, openBundle } from './lib/model/bundle/bundle.ts';
import { type ConfigOf, omitSettings, type SettingsTable } from './lib/process/config.ts';
import { ServingError } from './lib/process/errors.ts';
import { interruption } from './lib/process/interrupt.ts';
import { PACKAGE_ROOT } from './lib/process/package-root.ts';
import { type Progress, startProgress } from './lib/process/progress.ts';
import { PROCESS_SETTINGS } from './lib/process/settings.ts';
import { assertServes } from './lib/rag/retriever-name.ts';
import { repoKey } from './lib/rag/store/repo-key.ts';
import { RPC_SERVICE_SETTINGS } from './lib/worker/settings.ts';
import { PROMPT_SETTINGS } from './prefill/settings.ts';
import { checkPlaces, repositoryName, tenantOfIndexes } from './preflight.ts';
import { SAMPLE, SAMPLE_BODY } from './sample.ts';
import { loadConfig, SYSTEM_SETTINGS } from './settings.ts';
import { type Flags, type RunningSystem, type ServiceProcess, startSystem, WORKERS_NICE } from './supervisor.ts';

/** The settings that the supervisor decides itself: its services meet on this machine alone. */
const OWN = [
  'model',
  'prefillWorkers',
  'decodeWorkers',
  'indexer',
  'metricsPort',
  'advertise',
  'registry',
  'cpus',
  'rpcCert',
  'rpcKey',
  'rpcCa',
  'rpcSecretFile',
] as const;
/** The settings that only the gateway is to take: where the whole system listens. */
const GATEWAY_ONLY = ['host', 'port', 'insecureListen'] as const;

const GATEWAY_FLAGS = omitSettings(GATEWAY_SETTINGS, OWN);
const WORKER_FLAGS = omitSettings(
  {
    ...ENGINE_SETTINGS,
    drainTimeoutMs: PROCESS_SETTINGS.drainTimeoutMs,
    logLevel: PROCESS_SETTINGS.logLevel,
    nice: RPC_SERVICE_SETTINGS.nice,
  },
  OWN,
);
const INDEXER_FLAGS = omitSettings(INDEXER_SETTINGS, [...OWN, ...GATEWAY_ONLY]);
/** The settings that workers of one kind take besides WORKER_FLAGS. */
const PREFILL_FLAGS = PROMPT_SETTINGS;
const DECODE_FLAGS = SEQUENCE_SETTINGS;
const COLOCATED_FLAGS = { sharedChunkTokens: COLOCATED_SETTINGS.sharedChunkTokens };

export const UP_SETTINGS = {
  ...SYSTEM_SETTINGS,
  model: MODEL_SETTINGS.model.describe('model bundle or checkpoint (default: the model that ships, models/tiny-coder)'),
  ...GATEWAY_FLAGS,
  ...WORKER_FLAGS,
  ...PREFILL_FLAGS,
  ...DECODE_FLAGS,
  ...COLOCATED_FLAGS,
  ...INDEXER_FLAGS,
};
export type UpConfig = ConfigOf<typeof UP_SETTINGS>;

/**
 * The settings of a whole system. Where nobody says otherwise it serves the model that ships, with a store in its
 * folder.
 * @throws ServingError config_invalid
 */
export function loadUpConfig(
  flags: Readonly<Record<string, unknown>>,
  file: Readonly<Record<string, unknown>> = {},
): UpConfig {
  const { data } = loadConfig({ data: SYSTEM_SETTINGS.data }, flags, process.env, file);
  const defaults = {
    model: join(PACKAGE_ROOT, 'models', 'tiny-coder'),
    store: `lmdb:${join(data, 'store')}`,
    nice: WORKERS_NICE,
  };
  return loadConfig(UP_SETTINGS, flags, process.env, { ...defaults, ...file });
}

/** Starts everything, indexes, prints a request that works, and stays until it is told to stop. */
export async function runUp(config: UpConfig): Promise<void> {
  const stop = interruption();
  const release = await checkPlaces(config);
  try {
    const broken = new AbortController();
    const system = await bringUp(config, stop, (error) => broken.abort(error)).catch((error) => {
      broken.signal.throwIfAborted(); // what failed after that is a consequence
      throw error;
    });
    try {
      process.stdout.write(welcome(system.url, config));
      const over = AbortSignal.any([stop, broken.signal]);
      if (!over.aborted) await new Promise((done) => over.addEventListener('abort', done, { once: true }));
      broken.signal.throwIfAborted();
    } finally {
      const progress = startProgress('stopping');
      await system.close();
      progress.succeed('stopped');
    }
  } finally {
    await release();
  }
}

/**
 * Prepares the bundle, starts the processes and indexes: the system that `up` and the demo show.
 * @param onFinal called when a child has ended with an error that starting it again cannot mend.
 * @throws ServingError, or the signal's reason; nothing is left running then.
 */
export async function bringUp(
  config: UpConfig,
  stop: AbortSignal,
  onFinal?: (error: ServingError) => void,
): Promise<RunningSystem> {
  const progress = startProgress('preparing the model');
  try {
    const model = await bundleOf(config, (text) => progress.update(text));
    const bundle = await openBundle(model, config);
    assertServes(bundle, config.retriever);
    progress.succeed(`model ${model}`);
    const lack = contextLack(bundle.manifest);
    if (lack) progress.warn(lack);
    progress.start(`starting gateway and ${workersOf(config)}`);
    const system = await startSystem({
      mode: config.mode,
      prefill: config.prefill,
      decode: config.decode,
      pin: config.pin,
      logs: join(config.data, 'logs'),
      gateway: { ...pick(config, GATEWAY_FLAGS), model },
      workers: { ...pick(config, WORKER_FLAGS), model },
      prefillOnly: pick(config, PREFILL_FLAGS),
      decodeOnly: pick(config, DECODE_FLAGS),
      colocatedOnly: pick(config, COLOCATED_FLAGS),
      indexer: { ...pick(config, INDEXER_FLAGS), model },
      onRestart: (name, reason) => process.stderr.write(`${name} died (${reason}); starting it again\n`),
      onFinal,
      stop,
    });
    progress.succeed(system.processes.map(({ name, pid, address }) => `${name} pid ${pid} ${address}`).join(' · '));
    try {
      const tenant = await tenantOfIndexes(config);
      const indexer = system.processes.find(({ name }) => name.startsWith('indexer'))!;
      for (const dir of config.index) await indexBy(indexer, dir, tenant, progress, stop);
      stop.throwIfAborted();
    } catch (error) {
      await system.close();
      throw error;
    }
    return system;
  } catch (error) {
    progress.fail();
    stop.throwIfAborted(); // after Ctrl-C the failure of a child is a consequence, not the reason
    throw error;
  }
}

/** The values of a child's settings; what is empty stays at the child's default. */
function pick(config: UpConfig, table: SettingsTable): Flags {
  const values = Object.keys(table).map((name) => [name, config[name as keyof UpConfig]]);
  return Object.fromEntries(values.filter(([, value]) => value !== '' && value !== undefined));
}

function workersOf({ mode, prefill, decode }: UpConfig): string {
  return mode === 'colocated' ? `${prefill} colocated worker(s)` : `${prefill} prefill and ${decode} decode worker(s)`;
}

/**
 * Has the indexer, whose encoder is loaded, index a folder.
 * @throws ServingError that names the folder; the signal's reason.
 */
async function indexBy(
  indexer: ServiceProcess,
  dir: string,
  tenant: string,
  progress: Progress,
  stop: AbortSignal,
): Promise<void> {
  const repo = repoKey(tenant, repositoryName(dir));
  const task: FolderTask = { dir: resolve(dir), repo };
  progress.start(`indexing ${dir} as ${repo}`);
  const show = showProgress(progress, repo);
  try {
    const report = await indexer.perform(task, (news) => show(news as IndexProgress), stop);
    progress.succeed(summary(report as IndexReport));
  } catch (cause) {
    stop.throwIfAborted();
    const { code, message } = ServingError.from(cause);
    throw new ServingError(code, `--index ${dir}: ${message}`, { cause });
  }
}

/** What a person can do next: a request that works, a repository of their own, the logs, and how to stop. */
function welcome(url: string, { index, data, apiKeysFile, adminPage }: UpConfig): string {
  const [repository] = index;
  const rag = repository && { repo: repositoryName(repository), path: SAMPLE.path };
  const body = JSON.stringify({ ...SAMPLE_BODY, stream: true, rag }).replaceAll("'", "'\\''");
  // Without an installation npx finds the command; with one it runs that.
  const llavacode = process.env['npm_command'] === undefined ? 'llavacode' : 'npx llavacode';
  const options = [url === DEFAULT_URL ? '' : ` --url ${url}`, apiKeysFile ? ' --api-key KEY' : ''];
  const key = apiKeysFile ? " -H 'authorization: Bearer KEY'" : '';
  return `
Serving at ${url}. Try:

curl -N ${url}/v1/completions -H 'content-type: application/json'${key} -d '${body}'

Index a repository of your own, and name it in a request's rag.repo:

${llavacode} index --name NAME --path DIR${options.join('')}

${adminPage ? `Operator page: ${url}/admin/\n` : ''}Logs: ${resolve(data, 'logs')}
Ctrl-C stops it.
`;
}
