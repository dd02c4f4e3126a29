/**
 * Bodies that editors' plugins send. No plugin can be changed, and each sends fields of the server that it was made
 * for: a field that is not known is ignored and named in the answer's header `x-llavacode-ignored`. `null` means that a
 * field is not given. Fields that several of these APIs have are read here once.
 */
import { z } from 'zod';
import { COMPLETION_DEFAULTS, type CompletionRequest } from '../request.ts';
import { MAX_SEQUENCES, MAX_STOP_LENGTH, MAX_STOPS } from './completion-body.ts';

/** Reads the body of a route. */
export interface BodySchema<T> {
  /** The fields by themselves: what the description of the API is made of. */
  readonly fields: z.ZodType;
  safeParse(body: unknown): { success: true; data: T } | { success: false; error: z.ZodError };
}

/** What a schema makes of a body. */
export type BodyOf<S> = S extends BodySchema<infer T> ? T : never;

/** A request as the journey knows it, and what its route needs of it for the answer. */
export interface Translated<F> extends CompletionRequest {
  readonly form: F;
  /** Names of the fields that were ignored, as paths with dots. */
  readonly ignored: readonly string[];
}

/** The request and the rest of a translated body: what an API's own code makes of its fields. */
export interface Translation<F> {
  readonly request: Partial<CompletionRequest> & Pick<CompletionRequest, 'prompts'>;
  readonly form: F;
}

/**
 * A body whose unknown fields are ignored.
 * @param fields an object; objects within it are read in the same way.
 * @param translate makes a request of the fields. What it does not name has OpenAI's default.
 */
export function editorBody<T extends object, F>(
  fields: z.ZodType<T>,
  translate: (body: T) => Translation<F>,
): BodySchema<Translated<F>> {
  return {
    fields,
    safeParse(body) {
      const ignored: string[] = [];
      const result = fields.safeParse(knownFields(fields, body, '', ignored));
      if (!result.success) return result;
      const { request, form } = translate(result.data);
      const data = { ...COMPLETION_DEFAULTS, ...request, form, ignored };
      const problem = problemOf(data);
      return problem ? { success: false, error: problem } : { success: true, data };
    },
  };
}

/**
 * Reads an object and leaves out what it does not know.
 * @param fields those of the object, where `whole` does not show them.
 */
export function ignoringUnknown<T>(
  whole: z.ZodType<T>,
  fields: z.ZodType = whole,
): BodySchema<T & { readonly ignored: readonly string[] }> {
  return {
    fields,
    safeParse(body) {
      const ignored: string[] = [];
      const result = whole.safeParse(knownFields(fields, body, '', ignored));
      return result.success ? { success: true, data: { ...result.data, ignored } } : result;
    },
  };
}

/** What is wrong with fields that are right by themselves. */
function problemOf({ prompts, bestOf, sampling, maxTokens, rag }: CompletionRequest): z.ZodError | undefined {
  const refusal = (path: string[], message: string) => new z.ZodError([{ code: 'custom', path, message, input: null }]);
  const sequences = prompts.length * bestOf;
  if (sequences > MAX_SEQUENCES) {
    return refusal(['prompt'], `prompts × choices are ${sequences}, and must be at most ${MAX_SEQUENCES}`);
  }
  if (sampling.minTokens > maxTokens) {
    return refusal(['min_tokens'], `${sampling.minTokens} must be at most max_tokens = ${maxTokens}`);
  }
  const searches = rag !== undefined && rag.mode !== 'off';
  return searches && prompts.length > 1 ? refusal(['rag'], 'takes one prompt per request') : undefined;
}

/** Names that the header of ignored fields has room for. */
const NAMED = 20;
const NAME_LENGTH = 60;

/** A value with the fields that a schema knows and that are not null; the names of the others go to `ignored`. */
function knownFields(schema: z.ZodType, value: unknown, path: string, ignored: string[]): unknown {
  const object = objectOf(schema);
  if (object === undefined || typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  const given = value as Record<string, unknown>;
  const known: [string, unknown][] = [];
  for (const name of Object.keys(given)) {
    if (given[name] === null) continue;
    const field = Object.hasOwn(object.shape, name) ? (object.shape[name] as z.ZodType) : undefined;
    if (field) known.push([name, knownFields(field, given[name], `${path}${name}.`, ignored)]);
    else if (ignored.length < NAMED) ignored.push(`${path}${name}`);
  }
  return Object.fromEntries(known);
}

/** The object that a schema is, with or without a default. */
function objectOf(schema: z.ZodType): z.ZodObject | undefined {
  if (schema instanceof z.ZodObject) return schema;
  if (schema instanceof z.ZodPipe) return objectOf(schema.in as z.ZodType);
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault) {
    return objectOf(schema.unwrap() as z.ZodType);
  }
  return undefined;
}

/** Names the fields of a request that were ignored. */
export const IGNORED_HEADER = 'x-llavacode-ignored';

/** Names for a header: whatever a client calls its fields, the header is plain and short. */
export const ignoredHeader = (names: readonly string[]): string =>
  names.map((name) => encodeURIComponent(Buffer.from(name.slice(0, NAME_LENGTH)).toString())).join(',');

/** Up to {@link MAX_STOPS} strings, or one. Empty ones are left out: nothing can end where nothing stands. */
export const stops = z
  .union([z.string(), z.array(z.string()).max(MAX_STOPS)], { error: `must be a string or up to ${MAX_STOPS} strings` })
  .transform((given) => [given].flat().filter((stop) => stop !== ''))
  .refine(
    (list) => list.every(({ length }) => length <= MAX_STOP_LENGTH),
    `must not contain a string of more than ${MAX_STOP_LENGTH} characters`,
  );

/** Values that only servers with a sampler of their own tell apart are brought into the range that there is. */
export const temperature = z
  .number()
  .max(100)
  .transform((value) => Math.max(value, 0));
export const topP = z.number().transform((value) => Math.min(Math.max(value, 1e-6), 1));
export const minP = z.number().transform((value) => Math.min(Math.max(value, 0), 1));
export const topK = z
  .int()
  .max(2 ** 31 - 1)
  .transform((value) => Math.max(value, 0));
export const penalty = z.number().min(-2).max(2);
/** A negative seed means that one is drawn. */
export const seed = z.int().transform((value) => (value < 0 ? undefined : value));
export const count = z.int().min(1).max(MAX_SEQUENCES);

/** A number of tokens; a negative one asks for as many as there is room for (see {@link AS_MANY_AS_FIT}). */
export const tokenLimit = z.int().transform((value) => (value < 0 ? AS_MANY_AS_FIT : value));
/** A route brings a limit down to what the model holds: see editor-route.ts. */
export const AS_MANY_AS_FIT = Number.MAX_SAFE_INTEGER;
