/** An argument of the command line that counts something; commander names the option in front of its message. */
import { InvalidArgumentError } from 'commander';

/** @throws InvalidArgumentError unless the text is a whole number from 1 on. */
export function count(text: string): number {
  if (!/^[1-9]\d*$/.test(text)) throw new InvalidArgumentError('It must be a whole number, 1 or more.');
  return Number(text);
}
