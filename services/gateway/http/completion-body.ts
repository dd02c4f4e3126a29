/**
 * The body of `POST /v1/completions`: OpenAI's fields, those that vLLM's clients send as well, and `rag`. A field that
 * is not listed is refused by name, so that a misspelt option is not silently ignored.
 */
import { z } from 'zod';
import { RETRIEVERS } from '../../lib/rag/retriever-name.ts';
import { resolvePath } from '../../lib/rag/store/path-form.ts';
import { isWellFormed } from '../../lib/request/well-formed.ts';
import { MAX_OVERLAY_CHARACTERS, MAX_OVERLAY_FILES } from '../context/overlay.ts';
import {
  COMPLETION_DEFAULTS,
  type CompletionRequest,
  type OverlayText,
  type PromptInput,
  RAG_MODES,
  STOP_PLACES,
} from '../request.ts';
import { overlayText } from './repository.ts';

/** Sequences that one request may ask for: prompts × best_of. */
export const MAX_SEQUENCES = 128;
/** Entries of logit_bias, and of stop_token_ids. */
const MAX_ENTRIES = 1_024;
/** Entries of both, times the sequences: each sequence has a copy of them, which takes 2 µs per entry. */
const MAX_ENTRY_COPIES = 16_384;
/** Stop strings: vLLM has no limit, and code assistants send up to a dozen. */
export const MAX_STOPS = 16;
/** UTF-16 units of a stop string: the gateway looks for the beginning of one at every token. */
export const MAX_STOP_LENGTH = 256;
/** UTF-16 units of a path. */
const MAX_PATH = 4_096;

// Lists are checked up to the first wrong element: zod's own arrays report every one, which takes 10 s for millions.
const isString = (value: unknown): value is string => typeof value === 'string';
const isId = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isListOf =
  <T>(is: (value: unknown) => value is T) =>
  (value: unknown): value is T[] =>
    Array.isArray(value) && value.length > 0 && value.every(is);
const isIds = isListOf(isId);

// How the description of the API shows them.
const STRING = { type: 'string' } as const;
const IDS = { type: 'array', items: { type: 'integer', minimum: 0 } } as const;

export const promptField = z
  .custom<string | number[] | string[] | number[][]>(
    (value) => isString(value) || isIds(value) || isListOf(isString)(value) || isListOf(isIds)(value),
    'must be a string, an array of strings, an array of token ids or an array of arrays of token ids, not empty',
  )
  .meta({
    anyOf: [
      STRING,
      { type: 'array', items: STRING, minItems: 1 },
      { ...IDS, minItems: 1 },
      { type: 'array', items: IDS, minItems: 1 },
    ],
  });
const stop = z
  .custom<string | string[]>(
    (value) => isString(value) || (Array.isArray(value) && value.length <= MAX_STOPS && value.every(isString)),
    `must be a string or up to ${MAX_STOPS} strings`,
  )
  .meta({ anyOf: [STRING, { type: 'array', items: STRING, maxItems: MAX_STOPS }] });
const stopTokenIds = z
  .custom<number[]>(
    (value) => Array.isArray(value) && value.length <= MAX_ENTRIES && value.every(isId),
    `must be at most ${MAX_ENTRIES} token ids`,
  )
  .meta({ ...IDS, maxItems: MAX_ENTRIES });
const logitBias = z
  .custom<object>(
    (value) => typeof value === 'object' && value !== null && Object.keys(value).length <= MAX_ENTRIES,
    `must be an object of at most ${MAX_ENTRIES} entries`,
  )
  .meta({ type: 'object', additionalProperties: { type: 'number', minimum: -100, maximum: 100 } })
  .pipe(z.record(z.string().regex(/^\d{1,9}$/, 'must be a token id'), z.number().min(-100).max(100)));

/** UTF-16 units of a completion's given beginning: a few hundred lines. */
const MAX_COMPLETION_PREFIX = 32_768;

/** A string by which something is found again. Two that differ must stay different wherever they go. */
const NOT_WELL_FORMED = 'must be well-formed Unicode: it holds half of a surrogate pair';
export const key = z.string().refine(isWellFormed, NOT_WELL_FORMED);

/** The name of a model. Refusals quote it. */
export const modelField = z.string().max(1_024).refine(isWellFormed, NOT_WELL_FORMED);

/** A field of which only the value that changes nothing is supported. */
const only = <T extends boolean | number>(value: T) =>
  z.literal(value, { error: `is supported only as ${value}` }).optional();

/** Files that the editor holds, newer than what is indexed. Checked up to the first wrong one, as other lists are. */
const overlayFiles = z
  .custom<OverlayText[]>(isOverlay, {
    error:
      `must be at most ${MAX_OVERLAY_FILES} objects { path, text }, the paths within the repository, ` +
      `with at most ${MAX_OVERLAY_CHARACTERS} characters of text in all`,
  })
  .meta({
    type: 'array',
    items: {
      type: 'object',
      properties: { path: { ...STRING, maxLength: MAX_PATH }, text: STRING },
      required: ['path', 'text'],
      additionalProperties: false,
    },
    maxItems: MAX_OVERLAY_FILES,
  });

function isOverlay(value: unknown): value is OverlayText[] {
  if (!Array.isArray(value) || value.length > MAX_OVERLAY_FILES) return false;
  const isFile = (file: unknown): file is OverlayText =>
    typeof file === 'object' &&
    file !== null &&
    Object.keys(file).every((name) => name === 'path' || name === 'text') &&
    isString((file as OverlayText).text) &&
    isString((file as OverlayText).path) &&
    (file as OverlayText).path.length <= MAX_PATH &&
    resolvePath((file as OverlayText).path) !== undefined;
  let characters = 0;
  for (const file of value) {
    if (!isFile(file)) return false;
    characters += file.text.length;
  }
  return characters <= MAX_OVERLAY_CHARACTERS;
}

const defaults = COMPLETION_DEFAULTS;

/** The field `n_indent`, which llama.cpp's routes have as well: characters before a line. */
export const indentField = z.int().min(0).max(1_024);

/** UTF-16 units of a prediction: a few thousand lines. */
const MAX_PREDICTION = 131_072;

const predictedText = z.string().max(MAX_PREDICTION, `must have at most ${MAX_PREDICTION} characters`);

/** The field `prediction` (OpenAI's predicted outputs), which routes of other APIs take as well. */
export const predictionField = z.strictObject({
  type: z.literal('content', { error: 'is supported only as content' }),
  content: z.union([predictedText, z.array(z.strictObject({ type: z.literal('text'), text: predictedText })).max(64)], {
    error: 'must be a text, or a list of parts of type text',
  }),
});

/** The text of a prediction; undefined where there is none. */
export function readPrediction(prediction: z.output<typeof predictionField> | undefined): string | undefined {
  if (prediction === undefined) return undefined;
  const { content } = prediction;
  const text = typeof content === 'string' ? content : content.map((part) => part.text).join('');
  return text.slice(0, MAX_PREDICTION);
}

/** The field `session`, which routes of other APIs take as well. */
export const sessionField = key.min(1).max(256);

/** The field `rag`, which routes of other APIs take as well. */
export const ragField = z.strictObject({
  repo: key.min(1).max(256).optional(),
  mode: z.enum(RAG_MODES).default('compressed'),
  top_k: z.int().min(1).max(100).default(10),
  file_tokens: z.int().min(0).max(100).default(0),
  path: key.max(MAX_PATH).optional(),
  retriever: z.enum(RETRIEVERS).optional(),
  max_text_tokens: z.int().min(1).default(512),
  text_chunks: z.int().min(0).max(100).optional(),
  files: overlayFiles.optional(),
});

/**
 * What the field `rag` says of a request.
 * @param overlay texts that the client sends in other fields: they come before the files of `rag`.
 */
export function readRag(
  rag: z.output<typeof ragField> | undefined,
  overlay?: readonly OverlayText[],
): Pick<CompletionRequest, 'rag' | 'overlay'> {
  if (rag === undefined) return { rag, overlay };
  const files = rag.files?.map(({ path, text }) => overlayText(path, text));
  return {
    rag: {
      repo: rag.repo,
      mode: rag.mode,
      topK: rag.top_k,
      ...(rag.file_tokens > 0 && { fileTokens: rag.file_tokens }),
      path: rag.path === undefined ? undefined : resolvePath(rag.path),
      retriever: rag.retriever,
      maxTextTokens: rag.max_text_tokens,
      textChunks: rag.text_chunks,
    },
    overlay: overlay && files ? [...overlay, ...files] : (overlay ?? files),
  };
}

export const completionFields = z.strictObject({
  model: modelField.optional(),
  prompt: promptField,
  suffix: z.string().optional(),
  completion_prefix: z.string().min(1).max(MAX_COMPLETION_PREFIX).optional(),
  max_tokens: z.int().min(0).default(defaults.maxTokens),
  temperature: z.number().min(0).max(2).default(defaults.sampling.temperature),
  top_p: z.number().gt(0).max(1).default(defaults.sampling.topP),
  top_k: z
    .int()
    .min(-1)
    .max(2 ** 31 - 1)
    .default(defaults.sampling.topK),
  min_p: z.number().min(0).max(1).default(defaults.sampling.minP),
  n: z.int().min(1).max(MAX_SEQUENCES).default(defaults.n),
  best_of: z.int().min(1).max(MAX_SEQUENCES).optional(),
  stop: stop.default([]),
  stop_at: z.enum(STOP_PLACES).optional(),
  n_indent: indentField.optional(),
  language: z.string().max(64).optional(),
  seed: z.int().optional(),
  logprobs: z.int().min(0).max(5).optional(),
  echo: z.boolean().default(defaults.echo),
  frequency_penalty: z.number().min(-2).max(2).default(defaults.sampling.frequencyPenalty),
  presence_penalty: z.number().min(-2).max(2).default(defaults.sampling.presencePenalty),
  logit_bias: logitBias.default({}),
  stream: z.boolean().default(defaults.stream),
  stream_options: z
    .strictObject({
      include_usage: z.boolean().optional(),
      continuous_usage_stats: z.boolean().optional(),
      include_obfuscation: z.unknown().optional(),
    })
    .optional(),
  stop_token_ids: stopTokenIds.default([]),
  ignore_eos: z.boolean().default(defaults.ignoreEos),
  min_tokens: z.int().min(0).default(defaults.sampling.minTokens),
  return_token_ids: z.boolean().default(defaults.returnTokenIds),
  truncate_prompt_tokens: z.int().min(-1).optional(),
  add_special_tokens: z.boolean().default(defaults.addSpecialTokens),
  prediction: predictionField.optional(),
  rag: ragField.optional(),
  session: sessionField.optional(),
  timeout_ms: z.int().min(1).optional(),
  t_max_prompt_ms: z.int().min(0).optional(),
  t_max_predict_ms: z.int().min(0).optional(),
  priority: z.int().default(defaults.priority),
  cache_salt: key.min(1).max(1024).optional(),
  // Clients of OpenAI, vLLM and other servers send these. None of them changes what an answer says.
  user: key.optional(),
  request_id: key.optional(),
  metadata: z.unknown().optional(),
  prompt_cache_key: z.unknown().optional(),
  safety_identifier: z.unknown().optional(),
  service_tier: z.unknown().optional(),
  store: z.unknown().optional(),
  prompt_cache_retention: z.unknown().optional(),
  cache_prompt: z.unknown().optional(),
  keep_alive: z.unknown().optional(),
  return_progress: z.unknown().optional(),
  timings_per_token: z.unknown().optional(),
  tags: z.unknown().optional(),
  trace: z.unknown().optional(),
  trace_id: z.unknown().optional(),
  detokenize: only(true),
  num_beams: only(1),
  tools: z.array(z.never('is not supported')).max(0, 'is not supported').optional(),
  response_format: z.strictObject({ type: z.literal('text', { error: 'is supported only as text' }) }).optional(),
  skip_special_tokens: only(true),
  spaces_between_special_tokens: only(true),
  include_stop_str_in_output: only(false),
  use_beam_search: only(false),
  repetition_penalty: only(1),
  length_penalty: only(1),
});
type Fields = z.output<typeof completionFields>;

/** More fields than there are: a body with more has unknown ones, and the rest need not be looked at. */
const MAX_FIELDS = 100;

/** `null` means that a field is not given, as OpenAI has it, also within a field. */
function withoutNulls(body: unknown, maxFields = MAX_FIELDS): unknown {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) return body;
  const names = Object.keys(body).slice(0, maxFields);
  const entries = names.map((name) => [name, (body as Record<string, unknown>)[name]] as const);
  const given = entries.filter(([, value]) => value !== null);
  // A field of too many entries is refused as such.
  return Object.fromEntries(given.map(([name, value]) => [name, withoutNulls(value, Infinity)]));
}

/** Parses a body into a {@link CompletionRequest}. */
export const completionBody: z.ZodType<CompletionRequest> = z
  .preprocess((body) => withoutNulls(body), completionFields.superRefine(checkTogether))
  .transform(normalise);

/** Rules between fields. */
function checkTogether(body: Fields, context: z.RefinementCtx): void {
  const refuse = (path: string | string[], message: string) =>
    context.addIssue({ code: 'custom', path: [path].flat(), message });
  const bestOf = body.best_of ?? body.n;
  if (bestOf < body.n) refuse('best_of', `${bestOf} must be at least n = ${body.n}`);
  if (body.stream && bestOf > body.n) refuse('best_of', 'cannot be larger than n in a stream');
  if (promptList(body.prompt).length * bestOf > MAX_SEQUENCES) {
    refuse('prompt', `prompts × best_of must be at most ${MAX_SEQUENCES}`);
  }
  if (body.min_tokens > body.max_tokens) {
    refuse('min_tokens', `${body.min_tokens} must be at most max_tokens = ${body.max_tokens}`);
  }
  if (body.truncate_prompt_tokens === 0) refuse('truncate_prompt_tokens', 'must be -1 or at least 1');
  if (body.stream_options && !body.stream) refuse('stream_options', 'is allowed only with stream');
  const stops = [body.stop].flat();
  if (stops.includes('')) refuse('stop', 'must not contain an empty string');
  if (stops.some(({ length }) => length > MAX_STOP_LENGTH)) {
    refuse('stop', `must not contain a string of more than ${MAX_STOP_LENGTH} characters`);
  }
  const entries = Object.keys(body.logit_bias).length + body.stop_token_ids.length;
  if (entries * promptList(body.prompt).length * bestOf > MAX_ENTRY_COPIES) {
    refuse('logit_bias', `entries and stop_token_ids, times the sequences, must be at most ${MAX_ENTRY_COPIES}`);
  }
  const searches = body.rag !== undefined && body.rag.mode !== 'off';
  if (searches && promptList(body.prompt).length > 1) refuse('rag', 'takes one prompt per request');
  if (body.echo && body.completion_prefix === undefined && (body.suffix !== undefined || searches)) {
    refuse('echo', 'gives back the prompt as it was sent, so it cannot be combined with suffix or rag');
  }
}

function normalise(body: Fields): CompletionRequest {
  return {
    model: body.model,
    prompts: promptList(body.prompt),
    suffix: body.suffix,
    completionPrefix: body.completion_prefix,
    maxTokens: body.max_tokens,
    sampling: {
      temperature: body.temperature,
      topP: body.top_p,
      topK: Math.max(body.top_k, 0),
      minP: body.min_p,
      // Choosing the best of several needs the probability of each.
      logprobs: body.logprobs ?? ((body.best_of ?? body.n) > body.n ? 0 : defaults.sampling.logprobs),
      frequencyPenalty: body.frequency_penalty,
      presencePenalty: body.presence_penalty,
      logitBias: new Map(Object.entries(body.logit_bias).map(([id, bias]) => [Number(id), bias])),
      stopTokenIds: body.stop_token_ids,
      minTokens: body.min_tokens,
      priorOutputIds: defaults.sampling.priorOutputIds,
    },
    seed: body.seed,
    n: body.n,
    bestOf: body.best_of ?? body.n,
    stop: [body.stop].flat(),
    stopAt: body.stop_at,
    // llama.cpp's clients send 0 for none.
    indent: body.n_indent || undefined,
    language: body.language,
    ignoreEos: body.ignore_eos,
    logprobs: body.logprobs,
    echo: body.echo,
    stream: body.stream,
    includeUsage: body.stream_options?.include_usage ?? defaults.includeUsage,
    continuousUsage: body.stream_options?.continuous_usage_stats ?? defaults.continuousUsage,
    returnTokenIds: body.return_token_ids,
    truncatePromptTokens: body.truncate_prompt_tokens,
    addSpecialTokens: body.add_special_tokens,
    prediction: readPrediction(body.prediction),
    ...readRag(body.rag),
    priority: body.priority,
    cacheSalt: body.cache_salt,
    session: body.session,
    timeoutMs: body.timeout_ms,
    maxPromptMs: body.t_max_prompt_ms || undefined,
    maxPredictMs: body.t_max_predict_ms || undefined,
  };
}

export function promptList(prompt: z.output<typeof promptField>): PromptInput[] {
  if (typeof prompt === 'string') return [prompt];
  return typeof prompt[0] === 'number' ? [prompt as number[]] : (prompt as PromptInput[]);
}
