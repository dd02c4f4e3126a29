/** The kinds of values that settings have. Each room builds its table of settings from these and from zod. */
import { z } from 'zod';
import { parseHostPort } from './host-port.ts';

/**
 * A whole number, or its decimal digits as text. Nothing is accepted that JavaScript would coerce: '' and true are not
 * 0 and 1.
 */
export const whole = (min: number, max = Number.MAX_SAFE_INTEGER) => {
  const error = `must be a whole number${max === Number.MAX_SAFE_INTEGER ? ` >= ${min}` : ` from ${min} to ${max}`}`;
  const digits = (value: unknown) => (typeof value === 'string' && /^-?\d+$/.test(value) ? Number(value) : value);
  return z.preprocess(digits, z.int({ error }).min(min, { error }).max(max, { error }));
};

/** Milliseconds. Larger values than this allows would make Node's timers fire at once. */
export const milliseconds = (min: number) => whole(min, 2 ** 31 - 1);

/** true or false, also as text. */
export const flag = z.union([z.boolean(), z.stringbool()], { error: 'must be true or false' });

/** The path of a file; empty for none. */
export const file = z.string().default('');

/** Paths: a flag that may be given several times, a list in a file, or text with commas between. None by default. */
export const paths = z
  .union([z.string(), z.array(z.string())])
  .default([])
  .transform((given) => (typeof given === 'string' ? given.split(',') : given).filter((path) => path !== ''))
  .readonly();

/** One `host:port`; '' for none. */
export const addressOrNone = z
  .string()
  .refine((text) => text === '' || parseHostPort(text) !== undefined, 'must be host:port');

/** The same as a setting: none by default. */
export const address = addressOrNone.default('');
