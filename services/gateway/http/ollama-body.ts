/** The bodies of Ollama's `POST /api/generate` and `POST /api/show`. */
import { z } from 'zod';
import { COMPLETION_DEFAULTS } from '../request.ts';
import { modelField, ragField, readRag, sessionField } from './completion-body.ts';
import {
  AS_MANY_AS_FIT,
  editorBody,
  ignoringUnknown,
  minP,
  penalty,
  seed,
  stops,
  temperature,
  tokenLimit,
  topK,
  topP,
} from './editor-body.ts';

/** What a client of Ollama wants besides a completion. */
export interface OllamaForm {
  /** There is no prompt: the model is only to be made ready. */
  readonly isLoad: boolean;
}

/** Defaults are Ollama's. */
const options = z
  .object({
    num_predict: tokenLimit.default(AS_MANY_AS_FIT),
    temperature: temperature.default(0.8),
    top_k: topK.default(40),
    top_p: topP.default(0.9),
    min_p: minP.default(0),
    presence_penalty: penalty.default(0),
    frequency_penalty: penalty.default(0),
    stop: stops.default([]),
    seed: seed.optional(),
  })
  .prefault({});

const generateFields = z.object({
  model: modelField,
  prompt: z.string().default(''),
  suffix: z.string().default('').describe('text after the cursor'),
  raw: z.boolean().default(false).describe('whether the prompt is complete by itself: then a suffix has no effect'),
  stream: z.boolean().default(true),
  options,
  keep_alive: z.unknown().optional().describe('has no effect: the model is always loaded'),
  format: z
    .unknown()
    .optional()
    .refine((format) => format === undefined || format === '', 'is not supported: code is plain text'),
  session: sessionField.optional(),
  rag: ragField.optional(),
});

export const generateBody = editorBody(generateFields, ({ options: given, ...body }) => ({
  request: {
    model: body.model,
    prompts: [body.prompt],
    suffix: body.raw || body.suffix === '' ? undefined : body.suffix,
    maxTokens: given.num_predict,
    sampling: {
      ...COMPLETION_DEFAULTS.sampling,
      temperature: given.temperature,
      topK: given.top_k,
      topP: given.top_p,
      minP: given.min_p,
      presencePenalty: given.presence_penalty,
      frequencyPenalty: given.frequency_penalty,
    },
    seed: given.seed,
    stop: given.stop,
    stream: body.stream,
    session: body.session,
    ...readRag(body.rag),
  },
  form: { isLoad: body.prompt === '' && (body.raw || body.suffix === '') },
}));

const showFields = z
  .object({ model: modelField.optional(), name: modelField.optional().describe('an older name of `model`') })
  .refine(({ model, name }) => (model ?? name) !== undefined, { path: ['model'], message: 'is required' })
  .transform(({ model, name }) => ({ model: (model ?? name)! }));
export const showBody = ignoringUnknown(showFields);
