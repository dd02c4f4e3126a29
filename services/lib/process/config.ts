/**
 * How settings are read. A room exports a table of settings (`settings.ts` beside its code): names with a zod type, a
 * default and a description. A process reads the tables that it needs once, into one frozen value. Every setting has a
 * flag (`--kebab-case`), a variable (`LLAVACODE_SNAKE_CASE`) and a key in the configuration file (its flag without the
 * dashes); flags win over variables, variables over the file, the file over defaults.
 */
import leven from 'leven';
import type { z } from 'zod';
import { ServingError } from './errors.ts';

export type SettingsTable = Readonly<Record<string, z.ZodType>>;
/** The values that a table of settings gives. */
export type ConfigOf<T extends SettingsTable> = Readonly<{ [K in keyof T]: z.output<T[K]> }>;

export interface ConfigSources {
  /** Values by the names of settings, as the command line has parsed them. */
  readonly flags?: Readonly<Record<string, unknown>>;
  readonly env?: NodeJS.ProcessEnv;
  /** Values by the names of settings, as the configuration file has them. */
  readonly file?: Readonly<Record<string, unknown>>;
  /** Every setting of every service: a variable under our prefix that names none of them is a mistake. */
  readonly known: SettingsTable;
  /** Called once with the variables that look like ours and were made by the platform: they are skipped. */
  readonly onSkipped?: (variables: readonly string[]) => void;
  /** Checks across settings: each returns what is wrong, or undefined. */
  readonly rules?: readonly ((values: Readonly<Record<string, unknown>>) => string | undefined)[];
}

/** `LLAVACODE_MAX_INFLIGHT` for `maxInflight`. */
export const envName = (setting: string) => `LLAVACODE_${setting.replace(/[A-Z]/g, (c) => `_${c}`).toUpperCase()}`;
/** `max-inflight` for `maxInflight`: the key in a file, and the name of a limit in metrics and messages. */
export const keyName = (setting: string) => setting.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
/** `--max-inflight` for `maxInflight`. */
export const flagName = (setting: string) => `--${keyName(setting)}`;

/** A copy of a table without some of its settings. */
export function omitSettings<T extends SettingsTable, K extends string>(
  table: T,
  names: readonly K[],
): { [P in Exclude<keyof T, K>]: T[P] } {
  const left = new Set<string>(names);
  return Object.fromEntries(Object.entries(table).filter(([name]) => !left.has(name))) as {
    [P in Exclude<keyof T, K>]: T[P];
  };
}

/**
 * The settings of `table`, frozen. An empty variable counts as not set, since docker compose passes those on.
 * @throws ServingError config_invalid, listing every problem: bad values, missing ones, broken rules, and variables
 *   under our prefix that name no setting.
 */
export function readConfig<T extends SettingsTable>(table: T, sources: ConfigSources): ConfigOf<T> {
  const { flags = {}, file = {}, known, rules = [] } = sources;
  const env = withoutServiceLinks(sources);
  const problems = unknownVariables(env, known);
  const values: Record<string, unknown> = {};
  for (const [key, type] of Object.entries(table)) {
    const ofProcess = flags[key] ?? (env[envName(key)] || undefined);
    const given = ofProcess ?? file[key];
    const parsed = type.safeParse(given);
    if (parsed.success) values[key] = parsed.data;
    else {
      const why = given === undefined ? 'is required' : parsed.error.issues.map((issue) => issue.message).join('; ');
      const value = given === undefined ? '' : ` = ${shown(given)}`;
      const named =
        given === undefined || ofProcess !== undefined ? `${flagName(key)} (${envName(key)})` : keyName(key);
      const where = ofProcess === undefined && given !== undefined ? ' (in the file of --config)' : '';
      problems.push(`${named}${where}${value}: ${why}`);
    }
  }
  problems.push(...rules.map((rule) => rule(values)).filter((problem) => problem !== undefined));
  if (problems.length > 0) {
    throw new ServingError('config_invalid', `invalid configuration:\n  ${problems.join('\n  ')}`);
  }
  return Object.freeze(values) as ConfigOf<T>;
}

/** The name that was probably meant by one that does not exist, as the end of a message. */
export function didYouMean(name: string, names: readonly string[]): string {
  const nearest = names.toSorted((a, b) => leven(name, a) - leven(name, b))[0];
  return nearest !== undefined && leven(name, nearest) <= Math.max(2, name.length / 3)
    ? `; did you mean ${nearest}?`
    : '';
}

/**
 * The variables that Kubernetes (and Docker's links) give every container for each service of its namespace: for a
 * service called llavacode or llavacode-gateway they begin with our prefix, and LLAVACODE_PORT is
 * `tcp://10.0.0.1:8000`. https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
 */
const SERVICE_LINK = /_SERVICE_(?:HOST|PORT(?:_\w+)?)$|_PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?$/;

/** Only LLAVACODE_PORT is both a link and a setting of ours; other settings are never taken for links. */
function isServiceLink(name: string, value: string | undefined, isSetting: boolean): boolean {
  if (name.endsWith('_PORT') && /^(?:tcp|udp|sctp):\/\//.test(value ?? '')) return true;
  if (isSetting) return false;
  // Docker's links also give the name of the linked container, and pass on its variables.
  const isDockers =
    /^LLAVACODE_(?:\w+_)?ENV_/.test(name) || (name.endsWith('_NAME') && value?.startsWith('/') === true);
  return SERVICE_LINK.test(name) || isDockers;
}

function withoutServiceLinks({ env = {}, known, onSkipped }: ConfigSources): NodeJS.ProcessEnv {
  const settings = new Set(Object.keys(known).map(envName));
  const isOurs = (name: string) => name.startsWith('LLAVACODE_');
  const skipped = Object.keys(env).filter((name) => isOurs(name) && isServiceLink(name, env[name], settings.has(name)));
  if (skipped.length === 0) return env;
  onSkipped?.(skipped);
  return Object.fromEntries(Object.entries(env).filter(([name]) => !skipped.includes(name)));
}

function unknownVariables(env: NodeJS.ProcessEnv, known: SettingsTable): string[] {
  const names = Object.keys(known).map(envName);
  return Object.keys(env)
    .filter((name) => name.startsWith('LLAVACODE_') && !names.includes(name))
    .map((name) => `${name} is not a setting${didYouMean(name, names)}`);
}

/**
 * A value as a message may show it: without the part of a URL before its host and without its query, which may hold
 * passwords, however the URL is misspelt.
 */
const shown = (value: unknown) =>
  JSON.stringify(typeof value === 'string' ? value.replace(/.*@/s, '***@').replace(/\?.*/s, '?***') : value);
