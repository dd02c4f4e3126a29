/** What the words of `llavacode bench` are made of: how values are read, and the options that every bench has. */
import { join } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { ServingError } from '../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../services/lib/process/package-root.ts';

export const RESULTS = join('bench', 'results');

export const positive = (text: string): number => {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('a number above 0 is needed.');
  return value;
};
export const whole = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError('a whole number is needed.');
  return value;
};
/** How many: one at least. */
export const count = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError('a whole number from 1 on is needed.');
  return value;
};
export const share = (text: string): number => {
  const value = Number(text);
  if (!(value >= 0 && value <= 1)) throw new InvalidArgumentError('a number from 0 to 1 is needed.');
  return value;
};
export const list = (text: string): string[] => text.split(',').map((item) => item.trim());
export const numbers = (text: string): number[] => list(text).map(positive);
export const counts = (text: string): number[] => list(text).map(count);

/** A bench, with the options that all have: see RunOptions. */
export const benchWord = (name: string, description: string): Command =>
  new Command(name)
    .description(description)
    .option('--data <dir>', 'where bundles, indexes and logs lie', join('.llavacode', 'bench'))
    .option('--out <dir>', 'where artifacts and charts go', RESULTS)
    .option('--name <name>', "of the artifact; the bench's own when not given")
    .option('--json <file>', 'write the artifact there as well');

/** Flags with the command as it was typed: what makes the run again. */
export const typed = <T extends object>(flags: T): T & { command: string } => ({
  ...flags,
  command: ['llavacode', ...process.argv.slice(2)].join(' ').replaceAll(`${PACKAGE_ROOT}/`, ''),
});

/**
 * The one model of a bench that takes one.
 * @throws ServingError invalid_request where there are more.
 */
export function onlyModel(models: readonly string[]): string {
  if (models.length === 1) return models[0]!;
  throw new ServingError(
    'invalid_request',
    `one model at a time, not ${models.length}: --models ${models[0]} --name NAME keeps a run apart from another model's`,
  );
}
