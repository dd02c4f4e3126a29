/** Bodies of llama.cpp's `POST /infill` and `POST /completion`. */
import { z } from 'zod';
import { COMPLETION_DEFAULTS, type CompletionRequest } from '../request.ts';
import {
  indentField,
  modelField,
  promptField,
  promptList,
  ragField,
  readRag,
  sessionField,
} from './completion-body.ts';
import {
  AS_MANY_AS_FIT,
  count,
  editorBody,
  minP,
  penalty,
  seed,
  stops,
  temperature,
  tokenLimit,
  topK,
  topP,
} from './editor-body.ts';
import { overlayText } from './repository.ts';

/** What a client of llama.cpp wants of the answer. */
export interface LlamaCppForm {
  /** Fields of the answer, as paths with slashes; all of them where not given. */
  readonly responseFields: readonly string[] | undefined;
  /** Whether a stream tells how far the prompt is computed. */
  readonly returnProgress: boolean;
}

/** Most files of `input_extra`: plugins send 16 chunks. */
const MAX_EXTRA = 256;
/** Longest name of a file. */
const MAX_NAME = 4_096;
const MAX_RESPONSE_FIELDS = 100;
/** llama.cpp's number for a seed that is drawn, besides -1. */
const RANDOM_SEED = 2 ** 32 - 1;

/** Fields that both routes have. Their defaults are llama.cpp's. */
const common = {
  model: modelField.optional(),
  n_predict: tokenLimit.default(AS_MANY_AS_FIT).describe('output tokens; 0 computes and keeps the prompt, and answers'),
  n_cmpl: count.default(1).describe('choices; more than one make the answer a list'),
  stop: stops.default([]),
  seed: seed.optional(),
  temperature: temperature.default(0.8),
  top_k: topK.default(40),
  top_p: topP.default(0.95),
  min_p: minP.default(0.05),
  presence_penalty: penalty.default(0),
  frequency_penalty: penalty.default(0),
  ignore_eos: z.boolean().default(false),
  n_indent: indentField.optional().describe('ends before a line that is indented by fewer characters'),
  // llama.cpp does not apply it either. Plugins send 500, and 1 in a warm-up, and want their answer all the same.
  t_max_prompt_ms: z.unknown().optional().describe('has no effect: a prompt is computed to its end'),
  t_max_predict_ms: z.number().min(0).optional(),
  stream: z.boolean().default(false),
  cache_prompt: z.boolean().default(true).describe('has no effect: prompts are always kept'),
  id_slot: z.int().min(-1).max(1_000_000).default(-1).describe('requests with the same number make a session'),
  samplers: z.unknown().optional().describe('has no effect: the order of samplers is fixed'),
  response_fields: z.array(z.string().max(200)).max(MAX_RESPONSE_FIELDS).optional(),
  return_progress: z.boolean().default(false),
  return_tokens: z.boolean().default(false),
  session: sessionField.optional(),
  rag: ragField.optional(),
};

const infillFields = z.object({
  ...common,
  input_prefix: z.string().default(''),
  input_suffix: z.string().default(''),
  input_extra: z
    .array(z.object({ filename: z.string().max(MAX_NAME).default('tmp'), text: z.string() }))
    .max(MAX_EXTRA)
    .default([])
    .describe('parts of other files: context for this request'),
  prompt: z.string().default('').describe('text between input_prefix and the cursor'),
});
const completionFields = z.object({ ...common, prompt: promptField });

type Common = z.output<typeof infillFields> | z.output<typeof completionFields>;

export const infillBody = editorBody(infillFields, (body) => ({
  request: {
    ...requestOf(body),
    prompts: [body.input_prefix + body.prompt],
    suffix: body.input_suffix,
    ...readRag(
      body.rag,
      body.input_extra.map(({ filename, text }) => overlayText(filename, text, true)),
    ),
  },
  form: formOf(body),
}));

export const llamaCppCompletionBody = editorBody(completionFields, (body) => ({
  request: { ...requestOf(body), prompts: promptList(body.prompt) },
  form: formOf(body),
}));

function requestOf(body: Common): Omit<Partial<CompletionRequest>, 'prompts'> {
  return {
    model: body.model,
    maxTokens: body.n_predict,
    sampling: {
      ...COMPLETION_DEFAULTS.sampling,
      temperature: body.temperature,
      topK: body.top_k,
      topP: body.top_p,
      minP: body.min_p,
      presencePenalty: body.presence_penalty,
      frequencyPenalty: body.frequency_penalty,
    },
    seed: body.seed === RANDOM_SEED ? undefined : body.seed,
    n: body.n_cmpl,
    bestOf: body.n_cmpl,
    stop: body.stop,
    ignoreEos: body.ignore_eos,
    stream: body.stream,
    returnTokenIds: body.return_tokens,
    session: body.session,
    ...readRag(body.rag),
    // Plugins send 0 for none.
    indent: body.n_indent || undefined,
    maxPredictMs: body.t_max_predict_ms || undefined,
    slot: body.id_slot < 0 ? undefined : body.id_slot,
  };
}

const formOf = (body: Common): LlamaCppForm => ({
  responseFields: body.response_fields,
  returnProgress: body.return_progress,
});
