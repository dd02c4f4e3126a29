/** `llavacode up`: the whole system on one machine, for a person at a terminal. */
import { createHash } from 'node:crypto';
import { readdir, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { execaNode } from 'execa';
import ora from 'ora';
import { COLOCATED_SETTINGS } from './colocated/main.ts';
import { DECODE_SETTINGS } from './decode/main.ts';
import { GATEWAY_SETTINGS } from './gateway/main.ts';
import { INDEX_SETTINGS } from './indexer/index-command.ts';
import { INDEXER_SETTINGS } from './indexer/main.ts';
import { ENGINE_SETTINGS } from './lib/engine/load.ts';
import { openBundle } from './lib/model/bundle/bundle.ts';
import { exportBundle } from './lib/model/bundle/export-bundle.ts';
import type { Precision } from './lib/model/bundle/weight-formats.ts';
import { type Config, PACKAGE_ROOT, type Setting } from './lib/process/config.ts';
import { ServingError } from './lib/process/errors.ts';
import { interruption } from './lib/process/interrupt.ts';
import { RPC_SETTINGS } from './lib/rpc/credentials.ts';
import { PREFILL_SETTINGS } from './prefill/main.ts';
import { environmentOf, type Flags, type Mode, type RunningSystem, startSystem } from './supervisor.ts';

/** Settings that the supervisor sees to itself. */
const OWN = [
  ...(['model', 'prefillWorkers', 'decodeWorkers', 'indexer', 'metricsPort', 'advertise', 'registry', 'cpus'] as const),
  ...RPC_SETTINGS, // its services meet on this machine alone
] as const;
/** And of services behind the gateway. */
const INSIDE = ['host', 'port', 'insecureListen'] as const;

const without = <K extends Setting, Left extends Setting>(settings: readonly K[], left: readonly Left[]) =>
  settings.filter((setting): setting is Exclude<K, Left> => !(left as readonly Setting[]).includes(setting));

const GATEWAY_FLAGS = without(GATEWAY_SETTINGS, OWN);
const WORKER_FLAGS = without([...ENGINE_SETTINGS, 'drainTimeoutMs', 'logLevel'], OWN);
const INDEXER_FLAGS = without(INDEXER_SETTINGS, [...OWN, ...INSIDE]);
const INDEX_FLAGS = without(INDEX_SETTINGS, OWN);
/** What workers of one kind take besides. */
const ofKind = <K extends Setting>(settings: readonly K[]) => without(settings, [...OWN, ...INSIDE, ...WORKER_FLAGS]);
const PREFILL_FLAGS = ofKind(PREFILL_SETTINGS);
const DECODE_FLAGS = ofKind(DECODE_SETTINGS);
const COLOCATED_FLAGS = ofKind(COLOCATED_SETTINGS);

export const UP_SETTINGS = [
  ...new Set([
    'model' as const,
    ...GATEWAY_FLAGS,
    ...WORKER_FLAGS,
    ...PREFILL_FLAGS,
    ...DECODE_FLAGS,
    ...COLOCATED_FLAGS,
    ...INDEXER_FLAGS,
    ...INDEX_FLAGS,
  ]),
];

/** What `up` takes where neither a flag nor the environment says: the model that ships, and a store in its folder. */
export const upDefaults = (data: string) => ({
  LLAVACODE_MODEL: join(PACKAGE_ROOT, 'models', 'tiny-coder'),
  LLAVACODE_STORE: `lmdb:${join(data, 'store')}`,
});

export interface UpOptions {
  readonly mode: Mode;
  readonly prefill: number;
  readonly decode: number;
  /** Of a bundle made from a checkpoint. */
  readonly precision: Precision;
  /** Folder for bundles, logs and, unless `store` says otherwise, the index. */
  readonly data: string;
  /** Give each worker cores of its own. */
  readonly pin?: boolean;
  /** Repository to index at start. */
  readonly index?: string;
}

type UpConfig = Config<(typeof UP_SETTINGS)[number]>;

/** Starts everything, indexes, prints how to ask, and stays until it is told to stop. */
export async function runUp(config: UpConfig, options: UpOptions): Promise<void> {
  const stop = interruption();
  const system = await bringUp(config, options, stop);
  try {
    process.stdout.write(
      `\nServing at ${system.url} (logs in ${join(options.data, 'logs')}). Try:\n\n${exampleCurl(system.url, options.index)}\n\nCtrl-C stops it.\n`,
    );
    if (!stop.aborted) await new Promise((done) => stop.addEventListener('abort', done, { once: true }));
  } finally {
    const spinner = ora({ text: 'stopping', stream: process.stderr }).start();
    await system.close();
    spinner.succeed('stopped');
  }
}

/**
 * Bundle, processes, index: the system that `up` and the demo show.
 * @throws ServingError; the signal's reason. Nothing runs then.
 */
export async function bringUp(config: UpConfig, options: UpOptions, stop: AbortSignal): Promise<RunningSystem> {
  const spinner = ora({ text: 'preparing the model', stream: process.stderr }).start();
  try {
    const model = await bundleOf(config.model, options, (text) => {
      spinner.text = text;
    });
    // A bundle without an encoder serves completions without context; nothing can be indexed for it.
    const encodes = (await openBundle(model)).context !== undefined;
    spinner.succeed(`model ${model}`);
    spinner.start(`starting gateway, ${options.prefill} prefill and ${options.decode} decode worker(s)`);
    const pick = (names: readonly (keyof UpConfig)[]): Flags =>
      Object.fromEntries(names.map((name) => [name, config[name]]).filter(([, value]) => value !== ''));
    const system = await startSystem({
      ...options,
      logs: join(options.data, 'logs'),
      gateway: { ...pick(GATEWAY_FLAGS), model },
      workers: { ...pick(WORKER_FLAGS), model },
      prefillOnly: pick(PREFILL_FLAGS),
      decodeOnly: pick(DECODE_FLAGS),
      colocatedOnly: pick(COLOCATED_FLAGS),
      indexer: encodes ? { ...pick(INDEXER_FLAGS), model } : undefined,
      onRestart: (name, reason) => process.stderr.write(`${name} died (${reason}); starting it again\n`),
    });
    spinner.succeed(system.processes.map(({ name, pid, address }) => `${name} pid ${pid} ${address}`).join(' · '));
    try {
      stop.throwIfAborted();
      if (options.index) await indexInChild(options.index, { ...pick(INDEX_FLAGS), model });
    } catch (error) {
      await system.close();
      throw error;
    }
    return system;
  } catch (error) {
    if (spinner.isSpinning) spinner.fail();
    stop.throwIfAborted(); // one Ctrl-C reaches the children too: what failed is no news
    throw error;
  }
}

/** `model` itself if it is a bundle; if it is a checkpoint, a bundle made from it, once. */
async function bundleOf(model: string, options: UpOptions, onProgress: (text: string) => void): Promise<string> {
  if (await exists(join(model, 'manifest.json'))) {
    await openBundle(model);
    return resolve(model);
  }
  if (!(await exists(join(model, 'config.json')))) {
    throw new ServingError(
      'bundle_invalid',
      `${model} is neither a bundle (manifest.json) nor a checkpoint (config.json)`,
    );
  }
  const name = basename(resolve(model));
  const to = resolve(options.data, 'bundles', `${name}-${options.precision}-${await signature(model)}`);
  if (!(await exists(join(to, 'manifest.json')))) {
    await exportBundle({
      llm: model,
      to,
      name,
      precision: options.precision,
      onProgress: ({ part, done, total }) => onProgress(`exporting ${part}: ${Math.round((100 * done) / total)} %`),
    });
  }
  return to;
}

/** Changes when a file of the checkpoint does. */
async function signature(dir: string): Promise<string> {
  const hash = createHash('sha256');
  const entries = await readdir(dir, { recursive: true });
  for (const entry of entries.sort()) {
    const { size, mtimeMs } = await stat(join(dir, entry));
    hash.update(`${entry} ${size} ${mtimeMs}\n`);
  }
  return hash.digest('hex').slice(0, 8);
}

/** In a process of its own, which loads the encoder and is gone afterwards. */
async function indexInChild(path: string, flags: Flags): Promise<void> {
  const cli = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');
  const command = ['index', '--name', basename(resolve(path)), '--path', path];
  const { exitCode } = await execaNode(cli, command, { stdio: 'inherit', reject: false, env: environmentOf(flags) });
  if (exitCode !== 0) throw new ServingError('internal', `indexing ${path} failed with exit code ${exitCode}`);
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );

/** A request that works against this system as it stands, ready to paste. */
function exampleCurl(url: string, index: string | undefined): string {
  const body = {
    prompt: 'def hold(inventory, cart, now):\n    reservation = ',
    suffix: '\n    return reservation\n',
    max_tokens: 24,
    temperature: 0,
    stream: true,
    ...(index ? { rag: { repo: basename(resolve(index)) } } : {}),
  };
  return `curl -N ${url}/v1/completions -H 'content-type: application/json' -d '${JSON.stringify(body)}'`;
}
