/**
 * Options of the bench commands. Each is declared once, in a table: how its value is written, what it means, how it is
 * read, and its default. The command line, the type of the parsed options and the settings in the artifact follow from
 * it.
 */

import { join } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import { KV_FORMS } from '../services/lib/model/bundle/choices.ts';
import { flagName } from '../services/lib/process/config.ts';
import { count } from '../services/lib/process/count-argument.ts';
import { allowedCpus, parseCpus } from '../services/lib/process/cpus.ts';
import { ServingError } from '../services/lib/process/errors.ts';
import { PACKAGE_ROOT, SAMPLE_REPOSITORY } from '../services/lib/process/package-root.ts';

export const RESULTS = join('bench', 'results');
const TINY_MODEL = join(PACKAGE_ROOT, 'models', 'tiny-coder');

export const positive = (text: string): number => {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('It must be a number above 0.');
  return value;
};
export const whole = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError('It must be a whole number, 0 or more.');
  return value;
};
export const share = (text: string): number => {
  const value = Number(text);
  if (!(value >= 0 && value <= 1)) throw new InvalidArgumentError('It must be a number from 0 to 1.');
  return value;
};
export const text = (value: string): string => value;
export const list = (text: string): string[] => text.split(',').map((item) => item.trim());
export const numbers = (text: string): number[] => list(text).map(positive);
export const counts = (text: string): number[] => list(text).map(count);
/** A list of words, each of which must be one of `known`. */
export const words =
  <const Word extends string>(known: readonly Word[]) =>
  (text: string): Word[] =>
    list(text).map((item) => {
      const word = known.find((word) => word === item);
      if (word === undefined) throw new InvalidArgumentError(`${item} must be one of ${known.join(', ')}.`);
      return word;
    });

interface BenchOption<Value> {
  /** How `--help` writes the value, like `<n>`; undefined for a flag that takes none. */
  readonly placeholder: string | undefined;
  readonly description: string;
  readonly parse: (text: string) => Value;
  /** The value when the option is not given. */
  readonly initial: Value | undefined;
  /** How `--help` writes the default, where the value itself does not say it. */
  readonly initialText?: string;
  readonly choices?: readonly string[];
  readonly required?: boolean;
}
/** Options by their camel-case name: `timeoutMs` is `--timeout-ms`. */
export type OptionTable = Readonly<Record<string, BenchOption<unknown>>>;
/** The parsed options of a table. */
export type OptionsOf<Table extends OptionTable> = {
  readonly [Name in keyof Table]: Table[Name] extends BenchOption<infer Value> ? Value : never;
};

export const option = <Value>(
  placeholder: string,
  description: string,
  parse: (text: string) => Value,
  initial: NoInfer<Value>,
  initialText?: string,
): BenchOption<Value> => ({ placeholder, description, parse, initial, initialText });

/** An option without a default. */
export const optional = <Value>(
  placeholder: string,
  description: string,
  parse: (text: string) => Value,
): BenchOption<Value | undefined> => ({ placeholder, description, parse, initial: undefined });

export const required = <Value>(
  placeholder: string,
  description: string,
  parse: (text: string) => Value,
): BenchOption<Value> => ({ placeholder, description, parse, initial: undefined, required: true });

export const oneOf = <const Choice extends string>(
  placeholder: string,
  description: string,
  choices: readonly Choice[],
  initial: NoInfer<Choice>,
): BenchOption<Choice> => ({ placeholder, description, parse: (text) => text as Choice, initial, choices });

/** An option without a value: given or not. */
export const flag = (description: string): BenchOption<boolean> => ({
  placeholder: undefined,
  description,
  parse: () => true,
  initial: false,
});

/** Options of every bench: where it works and where its results go. */
export const RUN_OPTIONS = {
  data: option('<dir>', 'folder for bundles, indexes and logs', text, join('.llavacode', 'bench')),
  out: option('<dir>', 'folder for artifacts and charts', text, RESULTS),
  name: optional('<name>', 'name of the artifact; the name of the bench when not given', text),
  json: optional('<file>', 'a second place to write the artifact to', text),
};
export interface RunOptions extends OptionsOf<typeof RUN_OPTIONS> {
  /** The command that makes the run again. */
  readonly command: string;
}

/** Options of a bundle that a bench makes from a checkpoint or a published shape. */
export const BUNDLE_OPTIONS = {
  precision: option('<p>', 'precision of a bundle that is made', text, 'int4'),
  prefillPrecision: optional('<p>', 'precision of its weights for prompts: same or w8a8', text),
  kv: oneOf(
    '<form>',
    'how its KV lies: floats, or int8; of --against another checkout, this side only',
    KV_FORMS,
    'floats',
  ),
};

/** Options of the benches that run whole systems. */
export const SYSTEM_OPTIONS = {
  models: option('<list>', 'bundles, checkpoints or names of published shapes', list, [TINY_MODEL]),
  ...BUNDLE_OPTIONS,
  path: option('<dir>', 'repository that prompts and chunks come from', text, SAMPLE_REPOSITORY),
  repo: optional('<name>', 'name of the repository in the index; the name of its folder when not given', text),
  url: optional('<url>', 'a running system to measure instead of starting one; its index must hold --repo', text),
  cores: option('<list>', 'CPU cores to use, like 0-3', parseCpus, allowedCpus(), 'all'),
  slots: option('<n>', 'KV slots of each worker', whole, 8),
  capacity: option('<n>', 'tokens that one slot holds, prompt and output together', whole, 4096),
  timeoutMs: option('<n>', 'time after which a request counts as failed, in ms', whole, 120_000),
  seed: option('<n>', 'seed of arrivals, order and cursors', whole, 1),
};
export interface SystemBenchOptions extends OptionsOf<typeof SYSTEM_OPTIONS>, RunOptions {}

/** Options of the drills and the soak, which run on the model that ships unless told otherwise. */
export const DRILL_OPTIONS = {
  model: option('<model>', 'a bundle or a checkpoint', text, TINY_MODEL),
  precision: option('<p>', 'precision of a bundle that is made', text, 'fp32'),
  path: option('<dir>', 'repository that prompts and chunks come from', text, SAMPLE_REPOSITORY),
  rate: option('<n>', 'requests per second', positive, 4),
  speculation: oneOf('<when>', 'the setting of that name: answers must be the same', ['off', 'auto'], 'off'),
  seed: option('<n>', 'seed of arrivals and of the moments of disturbances', count, 1),
};

export const defaultsOf = <Table extends OptionTable>(table: Table): OptionsOf<Table> =>
  Object.fromEntries(Object.entries(table).map(([name, { initial }]) => [name, initial])) as OptionsOf<Table>;

/** The options that a table declares, without all others. */
export const pick = <Table extends OptionTable>(table: Table, options: OptionsOf<Table>): OptionsOf<Table> =>
  Object.fromEntries(Object.keys(table).map((name) => [name, options[name]])) as OptionsOf<Table>;

/** A bench command, declared without the code that it runs. */
export interface CommandSpec<Table extends OptionTable> {
  readonly name: string;
  readonly description: string;
  /** Its own options; those of every bench come in addition. */
  readonly options: Table;
}
export type ParsedOptions<Spec extends CommandSpec<OptionTable>> = OptionsOf<Spec['options']> & RunOptions;

/** @param run gets the parsed options, and separately those of them that the user gave. */
export function makeCommand<Table extends OptionTable>(
  { name, description, options }: CommandSpec<Table>,
  run: (options: OptionsOf<Table> & RunOptions, given: Readonly<Record<string, unknown>>) => Promise<unknown>,
): Command {
  const command = new Command(name).description(description);
  for (const [name, option] of Object.entries<BenchOption<unknown>>({ ...options, ...RUN_OPTIONS })) {
    command.addOption(commanderOption(name, option));
  }
  return command.action(async (parsed: OptionsOf<Table> & RunOptions) => {
    const given = Object.entries(parsed).filter(([name]) => command.getOptionValueSource(name) === 'cli');
    await run({ ...parsed, command: typedCommand() }, Object.fromEntries(given));
  });
}

function commanderOption(name: string, option: BenchOption<unknown>): Option {
  const { placeholder, description, parse, initial, initialText, choices, required = false } = option;
  const made = new Option([flagName(name), placeholder].filter(Boolean).join(' '), description);
  if (choices) made.choices(choices);
  else if (placeholder !== undefined) made.argParser(parse);
  if (initial !== undefined) made.default(initial, initialText);
  return made.makeOptionMandatory(required);
}

/** Paths inside the package are written as seen from its folder, so that a command works on other machines. */
const portable = (command: string) => command.replaceAll(`${PACKAGE_ROOT}/`, '');

/** The command as the user typed it. */
const typedCommand = () => portable(['llavacode', ...process.argv.slice(2).map(inShell)].join(' '));

/** A word as a shell takes it. */
const inShell = (word: string) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);

/** The command as a user would type it; options that are undefined are left out. */
export function commandText(words: string, options: Readonly<Record<string, unknown>>): string {
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  return portable(
    ['llavacode', words, ...given.map(([name, value]) => `${flagName(name)} ${written(value)}`)].join(' '),
  );
}

/** A value as an option takes it: lists as `a,b`, bounds as `ttft:500,tpot:50`. */
const written = (value: unknown): string =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
    ? Object.entries(value)
        .map((pair) => pair.join(':'))
        .join(',')
    : String(value);

/**
 * The one model of a bench that takes a single model.
 * @throws ServingError invalid_request if there are more.
 */
export function onlyModel({ models }: Pick<SystemBenchOptions, 'models'>): string {
  if (models.length === 1) return models[0]!;
  throw new ServingError(
    'invalid_request',
    `--models ${models.join(',')} names ${models.length} models, and this bench measures one at a time: ` +
      `give one, as in --models ${models[0]} --name NAME, where the name keeps its artifact apart`,
  );
}
