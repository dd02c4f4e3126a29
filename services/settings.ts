/** Every setting of every service in one table, and how a process reads those that it needs. */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { COLOCATED_SETTINGS } from './colocated/settings.ts';
import { GATEWAY_SETTINGS } from './gateway/settings.ts';
import { INDEX_CLIENT_SETTINGS, INDEX_SETTINGS, INDEXER_SETTINGS } from './indexer/settings.ts';
import { DEVICE_SETTINGS } from './lib/engine/settings.ts';
import { PRECISIONS } from './lib/model/bundle/choices.ts';
import { type ConfigOf, didYouMean, keyName, readConfig, type SettingsTable } from './lib/process/config.ts';
import { ServingError } from './lib/process/errors.ts';
import { reasonOf } from './lib/process/os-errors.ts';
import { file, flag, paths, whole } from './lib/process/setting-types.ts';
import { strideRule } from './lib/rag/settings.ts';
import { LSP_SETTINGS } from './lsp/settings.ts';

/** How prefill and decode are spread over workers; see supervisor.ts. */
export const MODES = ['disaggregated', 'colocated', 'hybrid'] as const;

/** The settings of a whole system on one machine (`llavacode up`), beside those that its services take. */
export const SYSTEM_SETTINGS = {
  mode: z
    .enum(MODES)
    .default('disaggregated')
    .describe(`how prefill and decode are spread: ${MODES.join(', ')}`),
  prefill: whole(1).default(1).describe('number of prefill workers (in colocated mode: of workers)'),
  decode: whole(1).default(1).describe('number of decode workers'),
  pin: flag.default(false).describe('give each worker cores of its own (Linux)'),
  precision: z
    .enum(PRECISIONS)
    .default('fp32')
    .describe(`precision of the bundle that is made when --model is a checkpoint: ${PRECISIONS.join(', ')}`),
  data: z
    .string()
    .min(1)
    .default('.llavacode')
    .describe('folder for bundles and logs, and for the index where no --store says otherwise'),
  index: paths.describe('repository to index at start, under the name of its folder; may be given several times'),
};

/** The settings of `llavacode index`. */
export const INDEX_COMMAND_SETTINGS = {
  ...INDEX_CLIENT_SETTINGS,
  ...INDEX_SETTINGS,
  store: INDEX_SETTINGS.store
    .unwrap()
    .optional()
    .describe(`index in this process, into this store: ${INDEX_SETTINGS.store.description}`),
  model: z.string().min(1).optional().describe('with --store: bundle or checkpoint that holds the encoder'),
  data: SYSTEM_SETTINGS.data,
  precision: SYSTEM_SETTINGS.precision,
};
export type IndexCommandConfig = ConfigOf<typeof INDEX_COMMAND_SETTINGS>;

/** The settings of `llavacode lsp`. */
export const LSP_COMMAND_SETTINGS = {
  ...INDEX_CLIENT_SETTINGS,
  ...LSP_SETTINGS,
  maxFileBytes: INDEX_SETTINGS.maxFileBytes,
  defaultExcludes: INDEX_SETTINGS.defaultExcludes,
};
export type LspCommandConfig = ConfigOf<typeof LSP_COMMAND_SETTINGS>;

/** The settings of `llavacode devices`. */
export const DEVICES_SETTINGS = {
  model: z.string().default('').describe('bundle to check each device with; when empty, devices are only opened'),
  providerLibrary: DEVICE_SETTINGS.providerLibrary,
  deviceId: DEVICE_SETTINGS.deviceId,
  threads: DEVICE_SETTINGS.threads,
};

export const SETTINGS = {
  config: file.describe('YAML file of settings: flags without their dashes as keys; flags and variables win over it'),
  ...GATEWAY_SETTINGS,
  ...COLOCATED_SETTINGS,
  ...INDEXER_SETTINGS,
  ...INDEX_CLIENT_SETTINGS,
  ...LSP_SETTINGS,
  ...SYSTEM_SETTINGS,
};

/**
 * The settings of one process from flags, variables, the configuration file and defaults, in this order.
 * @param file what {@link readConfigFile} has read; keys of other processes are left alone.
 * @throws ServingError config_invalid, listing every problem.
 */
export const loadConfig = <T extends SettingsTable>(
  table: T,
  flags: Readonly<Record<string, unknown>> = {},
  env: NodeJS.ProcessEnv = process.env,
  file: Readonly<Record<string, unknown>> = {},
): ConfigOf<T> =>
  readConfig(table, { flags, env, file, known: SETTINGS, rules: [strideRule], onSkipped: sayOnceThatSkipped });

let saidThatSkipped = false;
/** A process reads its settings in several steps; one line is enough. */
function sayOnceThatSkipped(variables: readonly string[]): void {
  if (saidThatSkipped) return;
  saidThatSkipped = true;
  process.stderr.write(
    `llavacode: ${variables.length} variables are not settings but service links of the platform, and are skipped: ` +
      `${variables.join(', ')} (enableServiceLinks: false in a pod's spec turns them off)\n`,
  );
}

/**
 * Values by the names of settings. Keys are flags without their dashes (`max-inflight: 64`), of any service: one file
 * serves a whole system.
 * @param path '' for no file.
 * @throws ServingError config_invalid: a file that cannot be read or is not YAML, or a key that is not a setting.
 */
export async function readConfigFile(path: string): Promise<Record<string, unknown>> {
  if (path === '') return {};
  const values = await parseYaml(path);
  const settings = new Map(Object.keys(SETTINGS).map((name) => [keyName(name), name]));
  settings.delete('config'); // a file does not name another one
  const unknown = Object.keys(values).filter((key) => !settings.has(key));
  if (unknown.length > 0) {
    const lines = unknown.map((key) => `${key} is not a setting${didYouMean(key, [...settings.keys()])}`);
    throw new ServingError('config_invalid', `--config ${path}:\n  ${lines.join('\n  ')}`);
  }
  const given = Object.entries(values).filter(([, value]) => value !== null); // `key:` alone says nothing
  return Object.fromEntries(given.map(([key, value]) => [settings.get(key)!, value]));
}

async function parseYaml(path: string): Promise<Record<string, unknown>> {
  const { parse } = await import('yaml'); // only processes with a file pay for the parser
  try {
    const values: unknown = parse(await readFile(path, 'utf8')) ?? {};
    if (typeof values === 'object' && values !== null && !Array.isArray(values))
      return values as Record<string, unknown>;
  } catch (cause) {
    throw new ServingError('config_invalid', `--config ${path}: ${reasonOf(cause)}`, { cause });
  }
  throw new ServingError('config_invalid', `--config ${path}: must be a YAML mapping of settings to values`);
}
