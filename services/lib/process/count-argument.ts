/** Arguments of the command line that count something; commander names the option in front of their messages. */
import { InvalidArgumentError } from 'commander';

/** @throws InvalidArgumentError unless the text is a whole number from 1 on. */
export function count(text: string): number {
  if (!/^[1-9]\d*$/.test(text)) throw new InvalidArgumentError('It must be a whole number, 1 or more.');
  return Number(text);
}

/** A parser that takes these numbers alone. It throws InvalidArgumentError for every other text. */
export const countAmong =
  <T extends number>(numbers: readonly T[]) =>
  (text: string): T => {
    const found = numbers.find((number) => String(number) === text);
    if (found === undefined) throw new InvalidArgumentError(`It must be one of ${numbers.join(', ')}.`);
    return found;
  };
