/**
 * The formats in which benchmarks of repository-level completion are published, field by field, as samples of one form.
 *
 *   repoeval   RepoCoder's line and api tasks: `prompt` up to the target, `metadata` with `task_id`, `ground_truth`,
 *              `fpath_tuple` (repository, then path) and `line_no`. What follows the target is in the repository alone.
 *   cceval     CrossCodeEval: `prompt`, `groundtruth`, `right_context`, `crossfile_context` with `text` and `list`,
 *              `metadata` with `task_id`, `repository`, `file` and line numbers.
 *   longeval   CrossCodeLongEval, tasks of chunks and functions: the same fields without line numbers.
 *   authors    the LlavaCode authors' files: the same with `crossfile_context` as text or object, and what other
 *              compressors made of it in fields of their own.
 *   llavacode  rows of `llavacode dataset` and of the authors' training: `crossfile_array`, path in the first line.
 */
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';
import { chunkOf } from '../../training/data/rows.ts';
import type { Format, Rewriter } from './command.ts';

/** A few lines of another file. */
export interface GivenChunk {
  /** '' where the benchmark does not say. */
  readonly path: string;
  readonly text: string;
}

export interface Sample {
  /** File and line, for messages. */
  readonly name: string;
  readonly id: string;
  /** undefined where the benchmark does not say. */
  readonly repository: string | undefined;
  /** Of the file with the gap, in the repository; '' where the benchmark does not say. */
  readonly path: string;
  readonly left: string;
  /** undefined where it stands in the repository alone. */
  readonly right: string | undefined;
  readonly target: string;
  /** The target's first line in the file by the benchmark's own count; where `right` is to be looked up. */
  readonly line: number | undefined;
  /** Best first; undefined where the benchmark has none. */
  readonly chunks: readonly GivenChunk[] | undefined;
  /** Context as other compressors have rewritten it. */
  readonly rewritten: Partial<Readonly<Record<Rewriter, string>>>;
}

const nonEmpty = (what: string) => z.string().min(1, `has no ${what}`);
const lineNumber = z.number().int().nonnegative();
const filePath = z.union([nonEmpty('path'), z.array(z.string()).min(1, 'has no path')]);

const contextList = z.array(
  z.object({ retrieved_chunk: z.string(), filename: z.string(), score: z.number().nullable().optional() }),
);
const contextObject = z.object({ text: z.string(), list: contextList.optional() });
const contextField = z.union([z.string(), contextObject], 'must be a text, or an object with text');

const plainFields = {
  prompt: z.string(),
  groundtruth: nonEmpty('text'),
  right_context: z.string(),
};
const plainMetadata = {
  task_id: nonEmpty('name'),
  repository: z.string().optional(),
  file: filePath.optional(),
  filepath: filePath.optional(),
  fpath_tuple: z.array(z.string()).min(2, 'must hold the repository and the path').optional(),
};

const SCHEMAS = {
  repoeval: z.object({
    prompt: z.string(),
    metadata: z
      .object({
        task_id: nonEmpty('name'),
        ground_truth: nonEmpty('text'),
        fpath_tuple: z.array(z.string()).min(2, 'must hold the repository and the path'),
        line_no: lineNumber.optional(),
        lineno: lineNumber.optional(),
        context_start_lineno: lineNumber.optional(),
      })
      .refine((fields) => (fields.line_no ?? fields.lineno) !== undefined, { path: ['line_no'], error: 'is missing' }),
  }),
  cceval: z.object({
    ...plainFields,
    metadata: z.object({
      task_id: nonEmpty('name'),
      repository: z.string(),
      file: nonEmpty('path'),
      context_start_lineno: lineNumber.optional(),
      groundtruth_start_lineno: lineNumber,
      right_context_start_lineno: lineNumber.optional(),
    }),
    crossfile_context: contextObject.optional(),
  }),
  longeval: z.object({
    ...plainFields,
    metadata: z.object(plainMetadata),
    crossfile_context: contextField.optional(),
  }),
  authors: z.object({
    ...plainFields,
    metadata: z.object(plainMetadata),
    crossfile_context: contextField,
    crossfile_context_qwen_compressed: contextField.optional(),
    crossfile_context_qwen_summarized: contextField.optional(),
    crossfile_context_zipt5_compressed: contextField.optional(),
  }),
  llavacode: z.object({
    prompt: z.string(),
    groundtruth: nonEmpty('text'),
    right_context: z.string().default(''),
    crossfile_array: z.array(z.string()),
    crossfile_context: contextField.optional(),
    metadata: z
      .object({
        ...plainMetadata,
        lineno: lineNumber.optional(),
        lines: lineNumber.optional(),
      })
      .optional(),
  }),
} satisfies Record<Format, z.ZodType>;

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * The format of a benchmark, by the fields of its first line.
 * @throws ServingError sample_invalid where no format has them.
 */
export function formatOf(name: string, value: unknown): Format {
  const fields = isRecord(value) ? value : {};
  const metadata = isRecord(fields['metadata']) ? fields['metadata'] : {};
  if ('ground_truth' in metadata) return 'repoeval';
  if ('crossfile_array' in fields) return 'llavacode';
  if ('groundtruth_start_lineno' in metadata) return 'cceval';
  const isAuthors = typeof fields['crossfile_context'] === 'string' || Object.keys(fields).some(isRewrittenField);
  if ('groundtruth' in fields) return isAuthors ? 'authors' : 'longeval';
  throw new ServingError(
    'sample_invalid',
    `${name}: no format has these fields (${Object.keys(fields).slice(0, 10).join(', ') || 'none'}): ` +
      'name it with --format',
  );
}

const isRewrittenField = (field: string) => /^crossfile_context_(qwen|zipt5)/.test(field);

/**
 * A line of a benchmark as a sample.
 * @param name file and line
 * @param onUnread told of each field that this reader does not know
 * @throws ServingError sample_invalid, which names file, line and every field at fault.
 */
export function readSample(format: Format, name: string, value: unknown, onUnread: (field: string) => void): Sample {
  const schema = SCHEMAS[format];
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    const issues = parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'the line'}: ${message}`);
    throw new ServingError('sample_invalid', `${name} is not a sample of ${format}: ${issues.join('; ')}`);
  }
  for (const field of unreadFields(schema.shape, value)) onUnread(field);
  const sample = READERS[format](name, parsed.data as never);
  if (sample.target.trim() === '') {
    throw new ServingError(
      'sample_invalid',
      `${name}: the target is white space alone, which nothing can be compared with`,
    );
  }
  return sample;
}

function unreadFields(shape: Readonly<Record<string, z.ZodType>>, value: unknown): string[] {
  if (!isRecord(value)) return [];
  const inMetadata = shape['metadata'] && isRecord(value['metadata']) ? Object.keys(value['metadata']) : [];
  const metadata = metadataShape(shape['metadata']);
  return [
    ...Object.keys(value).filter((field) => !(field in shape)),
    ...inMetadata.filter((field) => !(field in metadata)).map((field) => `metadata.${field}`),
  ];
}

function metadataShape(type: z.ZodType | undefined): Readonly<Record<string, unknown>> {
  const inner = type instanceof z.ZodOptional ? type.unwrap() : type;
  return inner instanceof z.ZodObject ? inner.shape : {};
}

type Row<F extends Format> = z.output<(typeof SCHEMAS)[F]>;

const READERS: { readonly [F in Format]: (name: string, row: Row<F>) => Sample } = {
  repoeval: (name, { prompt, metadata }) => ({
    ...placeOf({ fpath_tuple: metadata.fpath_tuple }),
    name,
    id: metadata.task_id,
    left: prompt,
    right: undefined,
    target: metadata.ground_truth,
    line: metadata.line_no ?? metadata.lineno,
    chunks: undefined,
    rewritten: {},
  }),
  cceval: (name, row) => ({ ...plainSample(name, row), line: row.metadata.groundtruth_start_lineno }),
  longeval: plainSample,
  authors: (name, row) => {
    const fields = {
      'given-pruned': row.crossfile_context_qwen_compressed,
      'given-summary': row.crossfile_context_qwen_summarized,
      zip: row.crossfile_context_zipt5_compressed,
    };
    const given = Object.entries(fields).flatMap(([rewriter, field]) =>
      field === undefined ? [] : [[rewriter, typeof field === 'string' ? field : field.text] as const],
    );
    return { ...plainSample(name, row), rewritten: Object.fromEntries(given) };
  },
  llavacode: (name, row) => ({ ...plainSample(name, row), chunks: row.crossfile_array.map(chunkOf) }),
};

interface PlainRow {
  readonly prompt: string;
  readonly groundtruth: string;
  readonly right_context: string;
  readonly crossfile_context?: z.output<typeof contextField> | undefined;
  readonly metadata?: Place & { readonly task_id: string };
}

function plainSample(name: string, row: PlainRow): Sample {
  const { metadata, crossfile_context: context } = row;
  return {
    ...placeOf(metadata ?? {}),
    name,
    id: metadata?.task_id ?? name,
    left: row.prompt,
    right: row.right_context,
    target: row.groundtruth,
    line: undefined,
    chunks: context === undefined ? undefined : chunksOf(context),
    rewritten: {},
  };
}

interface Place {
  readonly repository?: string | undefined;
  readonly file?: string | readonly string[] | undefined;
  readonly filepath?: string | readonly string[] | undefined;
  readonly fpath_tuple?: readonly string[] | undefined;
}

function placeOf({ repository, file, filepath, fpath_tuple: tuple }: Place): Pick<Sample, 'repository' | 'path'> {
  const path = [file ?? filepath ?? tuple?.slice(1) ?? ''].flat().join('/');
  return { repository: repository ?? tuple?.[0], path };
}

function chunksOf(context: z.output<typeof contextField>): GivenChunk[] {
  if (typeof context === 'string') return commentedChunks(context);
  const { list, text } = context;
  if (list === undefined) return commentedChunks(text);
  return list.map(({ retrieved_chunk, filename }) => ({ path: filename, text: retrieved_chunk }));
}

const FOUND_IN = 'the below code fragment can be found in:';
const COMMENT = /^\s*(?:#|\/\/) ?/;

/** Chunks that stand in one text as comments, each below its path. */
export function commentedChunks(text: string): GivenChunk[] {
  const chunks: { path: string; lines: string[] }[] = [];
  let pathNext = false;
  for (const line of text.split('\n')) {
    const bare = line.replace(COMMENT, '');
    if (bare.trim() === FOUND_IN) {
      chunks.push({ path: '', lines: [] });
      pathNext = true;
    } else if (pathNext) {
      chunks.at(-1)!.path = bare.trim();
      pathNext = false;
    } else if (bare.trim() !== '') chunks.at(-1)?.lines.push(bare); // what stands before the first chunk is a heading
  }
  return chunks.map(({ path, lines }) => ({ path, text: lines.join('\n') }));
}
